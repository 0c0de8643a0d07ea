"""What a call that fails leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro

from sgc.capture.state.param_store import PARTS
from sgc.capture.state.random_state import random_state, restore_random_state


@contextmanager
def undone_on_error() -> Iterator[None]:
    """An error leaves the param store and the random state as they were."""
    state, store = random_state(), pyro.get_param_store()
    parts: dict[str, dict[Any, Any]] = {name: getattr(store, name) for name in PARTS}
    before = [dict(part) for part in parts.values()]
    try:
        yield
    except BaseException:
        for (name, part), entries in zip(parts.items(), before, strict=True):
            part.clear()
            part.update(entries)
            setattr(store, name, part)  # clear_param_store() makes other dictionaries
        restore_random_state(state)
        raise
