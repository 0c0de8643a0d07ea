"""Pyro's effect handlers that stand around a call of a loss module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine import runtime
from pyro.poutine.trace_messenger import TraceMessenger

from sgc.run.guards import Call


def acting() -> list[Any]:
    """The handlers that act on the program, outermost first; traces only observe."""
    return [handler for handler in runtime._PYRO_STACK if not isinstance(handler, TraceMessenger)]


@contextmanager
def unobserved() -> Iterator[None]:
    """Hide from outer traces what happens while a program is rehearsed and captured; other handlers act on it."""
    stack = runtime._PYRO_STACK
    kept = list(stack)
    stack[:] = acting()
    try:
        yield
    finally:
        stack[:] = kept


class HandlerGuard:
    """The handlers around the call, by identity: a program captured under ``poutine.scale`` is scaled."""

    def __init__(self) -> None:
        self._handlers = acting()

    def miss(self, call: Call) -> str | None:
        current = acting() if runtime._PYRO_STACK else []
        if len(current) != len(self._handlers) or any(a is not b for a, b in zip(current, self._handlers, strict=True)):
            return "the effect handlers around the call changed"
        return None

    def describe(self) -> Iterator[str]:
        for handler in self._handlers:
            yield f"inside {type(handler).__name__}"
