"""Puts back what a call has changed, where it fails or must not count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sgc.tracing.state.param_store import restored_on_error
from sgc.tracing.state.random_state import random_state, restore_random_state


@contextmanager
def state_restored_on_error() -> Iterator[None]:
    """An error leaves the param store and the random state as they were."""
    state = random_state()
    try:
        with restored_on_error():
            yield
    except BaseException:
        restore_random_state(state)
        raise


def saved(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Keep the values of some tensors; what is returned writes them back, in place."""
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore() -> None:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)

    return restore
