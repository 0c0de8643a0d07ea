"""Pyro's effect handlers that stand around a call of a loss module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine import runtime
from pyro.poutine.trace_messenger import TraceMessenger

from sgc.guards.base import Call, Guard
from sgc.guards.identity import same
from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition


def acting() -> list[Any]:
    """The handlers that act on the program, outermost first; traces only observe."""
    return [handler for handler in runtime._PYRO_STACK if not isinstance(handler, TraceMessenger)]


@contextmanager
def unobserved() -> Iterator[None]:
    """Hide from outer traces what a prototype run and a capture do; other handlers act on it."""
    stack = runtime._PYRO_STACK
    kept = list(stack)
    stack[:] = acting()
    try:
        yield
    finally:
        stack[:] = kept


_REMEDY = "make the handlers once, outside of the loop, or put them around model and guide"


class HandlerGuard(Guard):
    """The handlers around the call, by identity: a program captured under ``poutine.scale`` is scaled."""

    def __init__(self) -> None:
        self._handlers = acting()

    def conditions(self) -> list[Condition]:
        return [
            conditions.NEVER
            if self._handlers
            else conditions.holds(conditions.attribute(runtime, "_PYRO_STACK"), list, ())
        ]

    def miss(self, call: Call) -> Miss | None:
        return (
            None
            if same(acting(), self._handlers)
            else Miss("the effect handlers around the call changed", remedy=_REMEDY)
        )

    def describe(self) -> Iterator[str]:
        for handler in self._handlers:
            yield f"inside {type(handler).__name__}"
