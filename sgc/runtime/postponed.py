"""A compilation that this process has to make itself, and waits for: it is put off until it pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_LEAST = 2.0
"""Seconds that a compilation takes at least, as far as nothing is known of it."""

_longest = [_LEAST]


def note_seconds(seconds: float) -> None:
    """Note how long a compilation has taken, in whatever process."""
    _longest[0] = max(_longest[0], seconds)


@dataclass
class Postponed:
    """Runs a program operator by operator until that has taken as long as the longest compilation so far.

    So the time that is lost, in waiting or in running uncompiled, is at most twice what it has to be. It has the
    methods of :class:`sgc.emit.inductor.apart.compiler_process.Beside`.
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
        return self.spent >= _longest[0]

    def taken(self) -> None:
        """No other process has compiled it."""
