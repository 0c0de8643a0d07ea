"""Folds what is repeated in a graph: time steps, layers, sequential plates, the many alike sites of an autoguide.

A node's name is taken apart into text and numbers (``log p(z_3)``: the text of ``log p(z_t)``, the number 3). Nodes are
alike if they have the same text and the same signature (whatever else is to be told apart: kind, distribution, shape,
plates, estimator, baseline), and if data flow into them alike: from the same nodes, or from nodes whose numbers are
their own plus a constant. A node may lack an edge from a node that is not there: the first step of a loop has no step
before it, and stays with the others. A node that has another parent instead is told apart: ``z_0``, drawn from a
parameter of its own, beside ``z_t, t = 1 … 29``. Nodes into which nothing flows, inputs above all, are compared by
where data flow from them instead.

Alike nodes of which a number has :data:`FEWEST` values or more become one folded node. What follows a site (its costs,
its score term, its baseline) is folded with the site or apart from it, but never across sites that are told apart. An
edge of the folded graph holds all edges between the members of two folded nodes, with the relation of their numbers.

Hence two laws: each node is a member of one folded node, and each edge is in one folded edge; and a graph in which
nothing is repeated stays as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sgc.graph.drawing.numbered_names import NumberedName
from sgc.graph.drawing.relation import Mapped, Numbers, Relation, mappings, relation_of

FEWEST = 4
"""The fewest steps that are folded; fewer are read more easily one by one."""

_Text = tuple[str, ...]
_Neighbours = Mapping[str, Mapping[_Text, Sequence[Numbers]]]
_Entry = tuple[_Text, Mapped, Numbers]


@dataclass(frozen=True, eq=False)
class FoldedNode:
    """Nodes that are alike but for the numbers in their names; most often one node.

    ``varying`` are the places, among the numbers of the name, of those that differ.
    """

    members: tuple[str, ...]
    text: _Text
    every_number: tuple[Numbers, ...]
    varying: tuple[int, ...]

    @classmethod
    def of(cls, members: Sequence[str]) -> FoldedNode:
        names = [NumberedName.of(member) for member in members]
        columns = zip(*(name.numbers for name in names), strict=True)
        varying = tuple(place for place, column in enumerate(columns) if len(set(column)) > 1)
        return cls(tuple(members), names[0].text, tuple(name.numbers for name in names), varying)

    @cached_property
    def numbers(self) -> tuple[Numbers, ...]:
        """The numbers that vary, of each member."""
        return tuple(tuple(numbers[place] for place in self.varying) for numbers in self.every_number)

    @cached_property
    def numbers_of(self) -> dict[str, Numbers]:
        """The numbers that vary, by the member."""
        return dict(zip(self.members, self.numbers, strict=True))

    @property
    def first(self) -> str:
        """The first member."""
        return self.members[0]

    @property
    def is_single(self) -> bool:
        """Whether it is one node."""
        return len(self.members) == 1

    def values(self, position: int) -> frozenset[int]:
        """The values of one of the numbers that vary."""
        return frozenset(numbers[position] for numbers in self.numbers)


@dataclass(frozen=True, eq=False)
class FoldedEdge:
    """All edges from members of one folded node to members of another, or of the same."""

    source: FoldedNode
    target: FoldedNode
    edges: tuple[tuple[str, str], ...]
    relation: Relation


@dataclass
class Folding:
    """The folded nodes, in the order of their first members, and the folded edges.

    ``kin`` are pairs of nodes that have the numbers of their loops in common, though no data flow between them.
    """

    nodes: tuple[FoldedNode, ...]
    edges: tuple[FoldedEdge, ...] = ()
    of: dict[str, FoldedNode] = field(default_factory=dict)
    kin: tuple[FoldedEdge, ...] = ()

    def relation(self, source: FoldedNode, target: FoldedNode, pairs: Iterable[tuple[str, str]]) -> Relation:
        """Describe pairs of members of two folded nodes."""
        own, theirs = source.numbers_of, target.numbers_of
        return relation_of(source.numbers, target.numbers, {(own[one], theirs[other]) for one, other in pairs})

    def between(self, pairs: Iterable[tuple[str, str]]) -> tuple[FoldedEdge, ...]:
        """The folded edges of pairs of nodes, whether they are edges of the graph or not."""
        grouped: dict[tuple[FoldedNode, FoldedNode], list[tuple[str, str]]] = {}
        for source, target in pairs:
            grouped.setdefault((self.of[source], self.of[target]), []).append((source, target))
        return tuple(
            FoldedEdge(source, target, tuple(edges), self.relation(source, target, edges))
            for (source, target), edges in grouped.items()
        )


def fold(
    signatures: Mapping[str, Hashable],
    edges: Sequence[tuple[str, str]],
    follows: Mapping[str, str],
    *,
    fewest: int | None = FEWEST,
) -> Folding:
    """Fold a graph.

    :param signatures: of each node, by its name, whatever tells it apart.
    :param edges: from and to which nodes data flow.
    :param follows: the sites that nodes belong to, by the nodes' names.
    :param fewest: the fewest steps that are folded; None: none are.
    """
    names = {key: NumberedName.of(key) for key in signatures}
    there: dict[_Text, set[Numbers]] = {}
    twice = set()  # z_3 and z_03
    for name in names.values():
        if name.numbers in there.setdefault(name.text, set()):
            twice.add(name.text)
        there[name.text].add(name.numbers)
    parents: dict[str, dict[_Text, list[Numbers]]] = {key: {} for key in signatures}
    children: dict[str, dict[_Text, list[Numbers]]] = {key: {} for key in signatures}
    for source, target in edges:
        parents[target].setdefault(names[source].text, []).append(names[source].numbers)
        children[source].setdefault(names[target].text, []).append(names[target].numbers)

    def enough(alike: Sequence[str]) -> bool:
        columns = zip(*(names[key].numbers for key in alike), strict=True)
        return fewest is not None and any(len(set(column)) >= fewest for column in columns)

    of: dict[str, FoldedNode] = {}
    for following in (False, True):
        groups: dict[Hashable, list[str]] = {}
        for key, signature in signatures.items():
            if (key in follows) is following:
                site = id(of[follows[key]]) if following else None
                alone = key if names[key].text in twice else None
                groups.setdefault((names[key].text, signature, site, alone), []).append(key)
        for group in groups.values():
            neighbours = parents if any(parents[key] for key in group) else children
            for members in _alike(group, names, neighbours, there) if enough(group) else [group]:
                for some in [members] if enough(members) else [[key] for key in members]:
                    of.update(dict.fromkeys(some, FoldedNode.of(some)))
    folding = Folding(tuple(dict.fromkeys(of[key] for key in signatures)), of=of)
    folding.edges = folding.between(edges)
    return folding


def _alike(
    group: list[str], names: Mapping[str, NumberedName], neighbours: _Neighbours, there: Mapping[_Text, set[Numbers]]
) -> Iterator[list[str]]:
    """Part nodes of one text so that those of a part are alike in where data come from (or go to, see above)."""
    entries: dict[str, set[_Entry]] = {key: set() for key in group}
    for text in dict.fromkeys(text for key in group for text in neighbours[key]):
        pairs = [(key, numbers) for key in group for numbers in neighbours[key].get(text, ())]
        mapped = _mapped(pairs, group, names, there[text])
        for key, numbers in pairs:
            entries[key].add((text, mapped, _entry(mapped, numbers, names[key].numbers)))

    def lacks_none_that_is_there(key: str, missing: Iterable[_Entry]) -> bool:
        return not any(_numbers(mapped, entry, names[key].numbers) in there[text] for text, mapped, entry in missing)

    rest = sorted(group, key=lambda key: -len(entries[key]))
    while rest:
        alike: list[str] = []
        pattern: set[_Entry] = set()
        for key in rest:
            more = entries[key] - pattern
            if lacks_none_that_is_there(key, pattern - entries[key]) and all(
                lacks_none_that_is_there(other, more) for other in (alike if more else ())
            ):
                alike.append(key)
                pattern |= more
        taken = set(alike)
        yield [key for key in group if key in taken]
        rest = [key for key in rest if key not in taken]


def _mapped(
    pairs: list[tuple[str, Numbers]], group: list[str], names: Mapping[str, NumberedName], there: set[Numbers]
) -> Mapped:
    """Which numbers of the parents go with which of the children, so that least has to be said.

    What has to be said is an entry for each way in which a child finds a parent, and an exception for each parent that
    a child would find so and that is not its parent.
    """
    best: tuple[int, Mapped] | None = None
    for mapped in mappings(len(pairs[0][1]), len(names[group[0]].numbers)):
        entries = {_entry(mapped, numbers, names[key].numbers) for key, numbers in pairs}
        said = len(entries) - len(pairs)
        for entry in entries:
            if best is not None and said >= best[0]:
                break
            said += sum(_numbers(mapped, entry, names[key].numbers) in there for key in group)
        if best is None or said < best[0]:
            best = said, mapped
    assert best is not None
    return best[1]


def _entry(mapped: Mapped, parent: Numbers, child: Numbers) -> Numbers:
    return tuple(
        number if place is None else number - child[place] for number, place in zip(parent, mapped, strict=True)
    )


def _numbers(mapped: Mapped, entry: Numbers, child: Numbers) -> Numbers:
    """The numbers of the parent that a child finds by an entry."""
    return tuple(
        number if place is None else number + child[place] for number, place in zip(entry, mapped, strict=True)
    )
