"""Which of some numbered nodes go with which of others: said in one formula, where there is one.

Nodes of a loop are told apart by numbers, one for each loop around them: ``z_3`` by ``(3,)``. A relation is a set of
pairs of such numbers. It is described by links (the source's number is the target's plus a constant, or not smaller)
and by the values that numbers are limited to, and the description is checked: it is ``exact`` if it gives those pairs
and no other, among all sources and targets that there are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, product

Numbers = tuple[int, ...]
Mapped = tuple[int | None, ...]
Limits = dict[int, frozenset[int]]

_MOST_SAID = 3
_MOST_MAPPED = 3  # numbers of a name; where there are more, only numbers at the same place are compared


@dataclass(frozen=True)
class Link:
    """How a number of the source goes with one of the target: by its differences from it, or by a bound of these.

    A difference is the source's number minus the target's. ``order`` is ``"≥"`` if all from the smallest on are meant,
    ``"≤"`` if all up to the largest are, and empty if those are meant that there are.
    """

    source: int
    target: int
    differences: frozenset[int]
    order: str = ""

    @property
    def shift(self) -> int | None:
        """The difference where there is one only."""
        return next(iter(self.differences)) if len(self.differences) == 1 and not self.order else None

    @cached_property
    def bound(self) -> int:
        """The smallest difference, or the largest one if all up to it are meant."""
        return max(self.differences) if self.order == "≤" else min(self.differences)

    @property
    def complexity(self) -> int:
        """How much has to be said."""
        if self.shift is not None:
            return int(self.shift != 0)
        return 2 + abs(self.bound) if self.order else 1 + 2 * len(self.differences)

    def holds(self, source: int, target: int) -> bool:
        """Whether two numbers go with one another."""
        difference = source - target
        if not self.order:
            return difference in self.differences
        return difference <= self.bound if self.order == "≤" else difference >= self.bound


@dataclass(frozen=True)
class Relation:
    """A description of pairs; ``sources`` and ``targets`` hold, by position, the values that a number is limited to."""

    links: tuple[Link, ...]
    sources: Limits
    targets: Limits
    exact: bool = True

    @property
    def complexity(self) -> int:
        """How much has to be said."""
        said = sum(link.complexity for link in self.links)
        return said + 4 * len(self.sources) + 3 * len(self.targets) + 100 * (not self.exact)

    def one_by_one(self) -> Iterator[Relation]:
        """Relations for few differences, each with one of them; else the relation itself."""
        some = [link for link in self.links if link.shift is None]
        if len(some) != 1 or some[0].order or len(some[0].differences) > _MOST_SAID or not self.exact:
            yield self
            return
        for shift in sorted(some[0].differences):
            links = (replace(link, differences=frozenset({shift})) if link is some[0] else link for link in self.links)
            yield replace(self, links=tuple(links))


def mappings(sources: int, targets: int) -> Iterator[Mapped]:
    """For each number of the source, that of the target which it may go with, or None; no two with the same."""
    if max(sources, targets) > _MOST_MAPPED:
        same = tuple(place if place < targets else None for place in range(sources))
        yield from dict.fromkeys((same, (None,) * sources))
        return
    for mapped in product((*range(targets), None), repeat=sources):
        taken = [place for place in mapped if place is not None]
        if len(taken) == len(set(taken)):
            yield mapped


def relation_of(
    sources: Sequence[Numbers], targets: Sequence[Numbers], pairs: Collection[tuple[Numbers, Numbers]]
) -> Relation:
    """The shortest exact description of pairs; if there is none, one that gives other pairs too."""
    own, theirs = _values(source for source, _ in pairs), _values(target for _, target in pairs)
    limits = (
        {place: own[place] for place, values in _values(sources).items() if values != own[place]},
        {place: theirs[place] for place, values in _values(targets).items() if values != theirs[place]},
    )
    best: Relation | None = None
    for mapped in mappings(len(sources[0]), len(targets[0])):
        for candidate in _descriptions(mapped, sources, targets, pairs, limits):
            if best is None or candidate.complexity < best.complexity:
                best = candidate
    assert best is not None
    return best


def _descriptions(
    mapped: Mapped,
    sources: Sequence[Numbers],
    targets: Sequence[Numbers],
    pairs: Collection[tuple[Numbers, Numbers]],
    limits: tuple[Limits, Limits],
) -> Iterator[Relation]:
    links = []
    for place, other in enumerate(mapped):
        if other is not None:
            links.append(Link(place, other, frozenset({source[place] - target[other] for source, target in pairs})))
    for chosen in product(*(_meant(link) for link in links)):
        for own, theirs in product(dict.fromkeys((False, bool(limits[0]))), dict.fromkeys((False, bool(limits[1])))):
            candidate = Relation(chosen, limits[0] if own else {}, limits[1] if theirs else {})
            if _count(candidate, sources, targets) == len(pairs):
                yield candidate
                break
    yield Relation(tuple(links), {}, {}, exact=False)


def _meant(link: Link) -> Iterator[Link]:
    """What may be meant by some differences: these, or a bound of them."""
    yield link
    if len(link.differences) > 1:
        yield replace(link, order="≥")
        yield replace(link, order="≤")


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
    if len(relation.links) == 1:
        return _count_in_order(relation.links[0], left, right)
    return sum(
        times * count
        for numbers, times in right.items()
        for others, count in left.items()
        if all(map(Link.holds, relation.links, others, numbers))
    )


def _count_in_order(link: Link, left: Counter[Numbers], right: Counter[Numbers]) -> int:
    """The same for one link, without looking at each pair."""
    ordered = sorted(left)
    upto = [0, *accumulate(left[numbers] for numbers in ordered)]
    total = 0
    for (number,), times in right.items():
        bound = (number + link.bound,)
        reached = (
            upto[bisect_right(ordered, bound)] if link.order == "≤" else upto[-1] - upto[bisect_left(ordered, bound)]
        )
        total += times * reached
    return total
