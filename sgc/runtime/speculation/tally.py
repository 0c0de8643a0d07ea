"""Counts how often what a program assumes of its branches on samples has held."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sgc.errors import StandInWarning
from sgc.graph.program import Check
from sgc.tracing.source import warn

_FIRST = 4
"""If this many calls fail right after the captured one, other branches are the usual ones."""

_LATEST, _AMONG = 16, 20
"""Later on other branches are the usual ones after this many failures among this many calls."""

_CAPTURES = 4
"""How often other branches are captured, at most: a program may have no usual ones."""

_MANY, _SHARE = 8, 0.05
"""A warning needs this many failures, and this share of the calls."""


@dataclass
class Tally:
    """How often what a specialization assumes has held.

    :param captures: how often other branches were captured before.
    """

    captures: int = 0
    calls: int = 0
    failures: Counter[Check] = field(default_factory=Counter)
    _latest: deque[int] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def note(self, check: Check) -> None:
        """A call has failed, at this assumption first."""
        self.failures[check] += 1
        self._latest.append(self.calls)
        count = self.failures.total()
        if count >= _MANY and count & (count - 1) == 0 and count >= _SHARE * self.calls:
            self._warn(count)

    def counting(self, take: Callable[..., Any]) -> Callable[..., Any]:
        """A function that takes a step, if it knows how to, and has it counted."""

        def take_and_count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            taken = take(args, kwargs)
            self.calls += taken is not None
            return taken

        return take_and_count

    @property
    def is_unusual(self) -> bool:
        """Whether other branches than the captured ones are the usual ones."""
        failed = len(self._latest)
        begins = failed == _FIRST and self.calls <= _FIRST + 1
        goes_on = failed == _LATEST and self.calls - self._latest[0] < _AMONG
        return self.captures < _CAPTURES and (begins or goes_on)

    def give_up(self) -> None:
        """Capture no other branches from now on."""
        self.captures = _CAPTURES

    def _warn(self, count: int) -> None:
        check, often = self.failures.most_common(1)[0]
        where = "" if often == count else f", {often} of them at this line first"
        warn(
            f"{count} of {self.calls} calls took another branch on a sample than the compiled program{where}. Eager "
            f"Pyro has made these calls, with the same random numbers\n  --> {check.source}\n  remedy: write the "
            "choice with tensors (torch.where, indexing, poutine.mask); to speculate pays where a branch nearly always "
            "goes one way",
            StandInWarning,
        )
