"""Threads take turns.

A capture changes what is the whole process's: Pyro's stack of handlers and its param store, methods of torch's classes,
filters of warnings, the random state. So do compilers. A call of a loss module, a step in Python, a capture and a
compilation wait for one another; a thread may begin one within another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sgc.native import conditions
from sgc.native.conditions import Condition

TURN = threading.RLock()

_PAUSE = 1e-4
"""Seconds between two looks whether another thread's step has ended."""

_STATE: dict[str, object] = {"capturing": None}


@contextmanager
def capturing() -> Iterator[None]:
    """A turn that changes what is the whole process's; until its end, :func:`nothing_captured` is false."""
    with TURN:
        before = _STATE["capturing"]
        _STATE["capturing"] = True
        try:
            yield
        finally:
            _STATE["capturing"] = before


class Token:
    """Lets one thread at a time take steps of the same parameters, also those that are one call of C++ and no turn.

    :param held: one object, which is taken out during a step. C++ does so itself, and takes no step without it.
    """

    def __init__(self) -> None:
        self.held: list[object] = [None]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn in which no other thread takes such a step; not to be begun within one."""
        with TURN:
            while True:
                try:
                    token = self.held.pop()
                    break
                except IndexError:
                    time.sleep(_PAUSE)
            try:
                yield
            finally:
                self.held.append(token)


def nothing_captured() -> Condition:
    """That no thread is in a capture or a compilation, for steps that are one call of C++ and no turn."""
    return conditions.is_same(conditions.entry(_STATE, "capturing"), None)
