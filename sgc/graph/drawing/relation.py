"""Which of some numbered nodes go with which of others: said in one formula, where there is one.

Nodes of a loop are told apart by numbers, one for each loop around them: ``z_3`` by ``(3,)``. A relation is a set of
pairs of such numbers. It is described by links (the source's number is the target's plus a constant, or not smaller)
and by the values that numbers are limited to, and the description is checked: it is ``exact`` if it gives those pairs
and no other, among all sources and targets that there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import ge, gt, le, lt

Numbers = tuple[int, ...]
Mapped = tuple[int | None, ...]

_ORDERS: dict[str, Callable[[int, int], bool]] = {"≥": ge, ">": gt, "≤": le, "<": lt}
_MOST_MAPPED = 3  # numbers of a name; where there are more, only numbers at the same place are compared


@dataclass(frozen=True)
class Link:
    """How a number of the source goes with one of the target: by its differences from it, or by an order."""

    source: int
    target: int
    differences: frozenset[int]
    order: str = ""

    @property
    def shift(self) -> int | None:
        """The difference, source minus target, where there is one only."""
        return next(iter(self.differences)) if len(self.differences) == 1 and not self.order else None

    @property
    def complexity(self) -> int:
        """How much has to be said."""
        if self.shift is not None:
            return int(self.shift != 0)
        return 2 if self.order else 9


@dataclass(frozen=True)
class Relation:
    """A description of pairs; ``sources`` and ``targets`` hold, by position, the values that a number is limited to."""

    links: tuple[Link, ...]
    sources: dict[int, frozenset[int]]
    targets: dict[int, frozenset[int]]
    exact: bool = True

    @property
    def complexity(self) -> int:
        """How much has to be said."""
        said = sum(link.complexity for link in self.links)
        return said + 4 * len(self.sources) + 3 * len(self.targets) + 100 * (not self.exact)


def mappings(sources: int, targets: int) -> Iterator[Mapped]:
    """For each number of the source, that of the target which it may go with, or None; no two with the same."""
    if max(sources, targets) > _MOST_MAPPED:
        same = tuple(place if place < targets else None for place in range(sources))
        yield from {same, (None,) * sources}
        return
    for mapped in product((*range(targets), None), repeat=sources):
        taken = [place for place in mapped if place is not None]
        if len(taken) == len(set(taken)):
            yield mapped


def relation_of(
    sources: Sequence[Numbers], targets: Sequence[Numbers], pairs: Collection[tuple[Numbers, Numbers]]
) -> Relation:
    """The shortest exact description of pairs; if there is none, one that gives other pairs too."""
    best: Relation | None = None
    for mapped in mappings(len(sources[0]), len(targets[0])):
        for candidate in _descriptions(mapped, sources, targets, pairs):
            if best is None or candidate.complexity < best.complexity:
                best = candidate
    assert best is not None
    return best


def _descriptions(
    mapped: Mapped, sources: Sequence[Numbers], targets: Sequence[Numbers], pairs: Collection[tuple[Numbers, Numbers]]
) -> Iterator[Relation]:
    links = []
    for place, other in enumerate(mapped):
        if other is not None:
            links.append(Link(place, other, frozenset(source[place] - target[other] for source, target in pairs)))
    ordered = [_in_order(link) for link in links]
    own, theirs = _values(source for source, _ in pairs), _values(target for _, target in pairs)
    limits = (
        {place: own[place] for place, values in _values(sources).items() if values != own[place]},
        {place: theirs[place] for place, values in _values(targets).items() if values != theirs[place]},
    )
    last = Relation(tuple(links), {}, {}, exact=False)
    for chosen in [links] if ordered == links else [ordered, links]:
        for limited_sources, limited_targets in ((False, False), (False, True), (True, False), (True, True)):
            limited = limits[0] if limited_sources else {}, limits[1] if limited_targets else {}
            candidate = Relation(tuple(chosen), *limited)
            if _count(candidate, sources, targets) == len(pairs):
                yield candidate
                return
            last = replace(candidate, exact=False)
    yield last


def _in_order(link: Link) -> Link:
    """The link as an order, where its differences have one sign."""
    low, high = min(link.differences), max(link.differences)
    if low == high:
        return link
    order = ">" if low > 0 else "≥" if low == 0 else "<" if high < 0 else "≤" if high == 0 else ""
    return replace(link, order=order)


def _values(numbers: Iterable[Numbers]) -> dict[int, frozenset[int]]:
    return {place: frozenset(values) for place, values in enumerate(zip(*numbers, strict=True))}


def _count(relation: Relation, sources: Sequence[Numbers], targets: Sequence[Numbers]) -> int:
    """How many pairs a description gives."""
    left = Counter(
        tuple(numbers[link.source] for link in relation.links)
        for numbers in sources
        if all(numbers[place] in values for place, values in relation.sources.items())
    )
    right = Counter(
        tuple(numbers[link.target] for link in relation.links)
        for numbers in targets
        if all(numbers[place] in values for place, values in relation.targets.items())
    )
    if not any(link.order for link in relation.links):
        shifts = [*product(*(link.differences for link in relation.links))]
        return sum(
            times * left[tuple(number + shift for number, shift in zip(numbers, shifted, strict=True))]
            for numbers, times in right.items()
            for shifted in shifts
        )
    total = 0
    holds = [_ORDERS.get(link.order) for link in relation.links]
    for numbers, times in right.items():
        for others, count in left.items():
            for link, compare, other, number in zip(relation.links, holds, others, numbers, strict=True):
                if not (compare(other, number) if compare else other - number in link.differences):
                    break
            else:
                total += times * count
    return total
