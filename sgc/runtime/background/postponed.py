"""A compilation that this process has to make itself, and waits for: it is put off until it pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sgc.emit.inductor.background.compiler_process import PendingCompilation

_LEAST = 2.0
"""Seconds that a compilation takes at least, as far as nothing is known of it."""

_longest = [_LEAST]
_under_way: list[tuple[PendingCompilation, float]] = []


def note_seconds(seconds: float) -> None:
    """Note how long a compilation has taken, in whatever process."""
    _longest[0] = max(_longest[0], seconds)


def note_begun(asked: PendingCompilation) -> None:
    """Note a compilation that begins now in another process."""
    _under_way.append((asked, time.perf_counter()))


def _longest_so_far() -> float:
    """How long the longest compilation has taken, or has been under way by now."""
    _under_way[:] = [(asked, began) for asked, began in _under_way if not asked.is_done()]
    now = time.perf_counter()
    return max(_longest[0], *(now - began for _, began in _under_way), 0.0)


@dataclass
class Postponed:
    """Runs a program operator by operator until that has taken as long as the longest compilation so far.

    So the time that is lost, in waiting or in running uncompiled, is at most twice what it has to be.
    """

    spent: float = 0.0

    def timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; it counts the seconds that it takes."""

        def run_and_count(*inputs: Tensor) -> Any:
            began = time.perf_counter()
            try:
                return run(*inputs)
            finally:
                self.spent += time.perf_counter() - began

        return run_and_count

    def is_done(self) -> bool:
        """Whether it is to be compiled now."""
        return self.spent >= _longest[0] and self.spent >= _longest_so_far()
