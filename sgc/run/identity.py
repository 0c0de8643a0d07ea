"""What must be the very same objects as before, compared in loops that run in C."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import call, is_
from typing import Any


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(one) == len(other) and all(map(is_, one, other))


class Pins:
    """Reads without arguments, each with the object that it must give.

    :param pins: pairs of a read, best one written in C such as ``partial(dict.get, holder, key)``, and an object.
    """

    __slots__ = ("_expected", "_reads")

    def __init__(self, pins: Iterable[tuple[Callable[[], Any], Any]]) -> None:
        listed = list(pins)
        self._reads = [read for read, _ in listed]
        self._expected = [expected for _, expected in listed]

    def hold(self) -> bool:
        """Whether every read gives its object; what a read raises is passed on."""
        return all(map(is_, map(call, self._reads), self._expected))
