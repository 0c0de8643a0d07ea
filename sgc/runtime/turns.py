"""Threads take turns.

A capture changes what is the whole process's: Pyro's stack of handlers and its param store, methods of torch's classes,
filters of warnings, the random state. So do compilers. A call of a loss module, a step in Python, a capture and a
compilation wait for one another; a thread may begin one within another.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from sgc.native import conditions
from sgc.native.conditions import Condition

TURN = threading.RLock()

_PAUSE = 1e-4
"""Seconds between two looks whether another thread's step has ended."""

_STATE: dict[str, object] = {"capturing": None}


@contextmanager
def capturing() -> Iterator[None]:
    """A turn that changes what is the whole process's; until its end, :func:`nothing_captured` is false.

    It begins when the steps have ended that other threads take as one call of C++. These wait for no turn, so each of
    them ends; no further one begins.
    """
    with TURN:
        before = _STATE["capturing"]
        _STATE["capturing"] = True
        try:
            Token.wait_for_all()
            yield
        finally:
            _STATE["capturing"] = before


class Token:
    """Lets one thread at a time take steps of the same parameters, also those that are one call of C++ and no turn.

    :param held: one object, which is taken out during a step. C++ does so itself, and takes no step without it.
    """

    _all: ClassVar[weakref.WeakSet[Token]] = weakref.WeakSet()
    _adding: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.held: list[object] = [None]
        self._is_of_turn = False
        with Token._adding:
            Token._all.add(self)

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
            self._is_of_turn = True
            try:
                yield
            finally:
                self._is_of_turn = False
                self.held.append(token)

    @staticmethod
    def wait_for_all() -> None:
        """Wait, in a turn, until no other thread takes a step: what this one has taken out is of its own turns."""
        with Token._adding:
            tokens = list(Token._all)
        for token in tokens:
            while not (token.held or token._is_of_turn):
                time.sleep(_PAUSE)


def nothing_captured() -> Condition:
    """A condition: no thread captures or compiles. For steps that are one call of C++, and so wait for no turn."""
    return conditions.is_same(conditions.entry(_STATE, "capturing"), None)
