"""What a call that fails leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro

from sgc.capturing.randomness import random_state, restore_random_state


@contextmanager
def undone_on_error() -> Iterator[None]:
    """An error leaves the param store and the random state as they were."""
    state, store = random_state(), pyro.get_param_store()
    parts: tuple[dict[Any, Any], ...] = (store._params, store._param_to_name, store._constraints)
    before = [dict(part) for part in parts]
    try:
        yield
    except BaseException:
        for part, entries in zip(parts, before, strict=True):
            part.clear()
            part.update(entries)
        restore_random_state(state)
        raise
