"""How often a loss module was compiled anew, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sgc.guards.miss import Miss


@dataclass(frozen=True)
class MissCount:
    """A reason to compile anew, and how often it was one: ``about`` is what differed, ``latest`` how it last did."""

    about: str
    count: int
    latest: str
    remedy: str

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"{times}: {self.latest}. Remedy: {self.remedy}."


class Misses(Sequence[MissCount]):
    """The reasons for which a loss module was compiled anew, the most frequent one first; printed, a line each."""

    def __init__(self, misses: Iterable[Miss]) -> None:
        counts: dict[str, list[Miss]] = {}
        for miss in misses:
            counts.setdefault(miss.about, []).append(miss)
        made = [MissCount(about, len(of), str(of[-1]), of[-1].remedy) for about, of in counts.items()]
        self._counts = sorted(made, key=lambda one: -one.count)

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, position: Any) -> Any:
        return self._counts[position]

    def __iter__(self) -> Iterator[MissCount]:
        return iter(self._counts)

    def __str__(self) -> str:
        return "\n".join(map(str, self._counts)) or "compiled once"

    __repr__ = __str__
