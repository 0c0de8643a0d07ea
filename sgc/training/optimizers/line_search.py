"""A step of L-BFGS, which looks at several losses on its way."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from sgc.runtime.restore_on_error import saved


class NanInSearch(Exception):
    """The loss was NaN somewhere on the way of a line search."""


def search(optimizer: torch.optim.LBFGS, closure: Callable[[], Tensor]) -> None:
    """A step of L-BFGS, which is not taken if a loss on its way is NaN or an error.

    :param closure: gives the loss, after its gradients; raises :class:`NanInSearch` if it is NaN.
    """
    state = copy.deepcopy(optimizer.state_dict())
    restore = saved(p for group in optimizer.param_groups for p in group["params"])
    try:
        optimizer.step(closure)
    except BaseException as error:
        restore()
        optimizer.load_state_dict(state)
        if not isinstance(error, NanInSearch):
            raise
