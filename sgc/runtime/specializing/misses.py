"""How often a loss module was compiled anew, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sgc.guards.miss import Miss
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.state.places import PlaceOwner


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


def with_what_is_open(miss: Miss, made: Specialization) -> Miss:
    """The reason for a specialization, without a remedy where that one serves whatever differed.

    :param made: the specialization that was made because of it.
    """
    for declared in made.inputs:
        if declared.name == miss.about and isinstance(made.owners[declared.name], PlaceOwner):
            return Miss(miss, miss.about, "none is needed, it is an input of the version that was made then")
        if miss.about == f"the shape of {declared.name}" and made.capture.program.is_resized(declared.name):
            return Miss(miss, miss.about, "none is needed, the version that was made then is for any size")
    return miss
