"""What a call that fails leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sgc.capture.state.param_store import restored_on_error
from sgc.capture.state.random_state import random_state, restore_random_state


@contextmanager
def undone_on_error() -> Iterator[None]:
    """An error leaves the param store and the random state as they were."""
    state = random_state()
    try:
        with restored_on_error():
            yield
    except BaseException:
        restore_random_state(state)
        raise
