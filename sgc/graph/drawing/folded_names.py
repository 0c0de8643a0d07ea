"""How folded nodes are named: ``z_t``, and what is said of a relation: ``t → t+1``, ``log p(z_t') for t' ≥ t``.

Each number that varies has a letter. Numbers that go with one another by a link of an exact relation have the same one:
a letter from ``t`` on if a link goes from one step to another, from ``i`` on if not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from sgc.graph.drawing.folding import FoldedEdge, FoldedNode, Folding
from sgc.graph.drawing.numbered_names import NumberedName, listed, spelled
from sgc.graph.drawing.relation import Link, Relation

_Number = tuple[FoldedNode, int]


class FoldedNames:
    """The names of a folding's nodes.

    ``loops`` are the numbers that have one letter, by that letter.
    """

    def __init__(self, folding: Folding) -> None:
        self._letters: dict[_Number, str] = {}
        self.loops: dict[str, list[_Number]] = {}
        self._of = folding.of
        for numbers, moves in _linked(folding):
            letter = next(name for name in _names("tuvw" if moves else "ijklmn") if name not in self.loops)
            self.loops[letter] = numbers
            self._letters.update(dict.fromkeys(numbers, letter))

    def letters(self, node: FoldedNode) -> tuple[str, ...]:
        """The letter of each number that varies."""
        return tuple(self._letters[node, position] for position in range(len(node.varying)))

    def name(self, node: FoldedNode) -> str:
        """``z_t``; of a single node its key."""
        return node.first if node.is_single else self.with_words(node, self.letters(node))

    def with_words(self, node: FoldedNode, words: Sequence[str]) -> str:
        """The name with other words for the numbers that vary."""
        if node.is_single:
            return node.first
        said = dict(zip(node.varying, words, strict=True))
        numbers = [said.get(place, str(number)) for place, number in enumerate(node.every_number[0])]
        return spelled(node.text, numbers)

    def ranges(self, node: FoldedNode, *positions: int) -> str:
        """``t = 0 … 29, i = 1, 2`` of the numbers at these positions, or of all; empty for a single node."""
        letters = self.letters(node)
        places = positions or range(len(letters))
        return ", ".join(dict.fromkeys(f"{letters[place]} = {listed(node.values(place))}" for place in places))

    def values(self, letter: str) -> set[int]:
        """All values that the numbers with a letter have."""
        return {value for node, position in self.loops[letter] for value in node.values(position)}

    def range_of(self, letter: str) -> str:
        """These in words: ``t = 0 … 29``."""
        return f"{letter} = {listed(self.values(letter))}"

    def of_each(self, node: FoldedNode, names: Sequence[str]) -> str:
        """One name for those that go with each member: the letters in it where its numbers are the members' own."""
        if len(set(names)) == 1:
            return names[0]
        parts = [NumberedName.of(name) for name in names]
        words = []
        for column in zip(*(part.numbers for part in parts), strict=True):
            own = (letter for at, letter in enumerate(self.letters(node)) if column == _column(node, at))
            words.append(str(column[0]) if len(set(column)) == 1 else next(own, "…"))
        return spelled(parts[0].text, words)

    def on_edge(self, source: FoldedNode, target: FoldedNode, relation: Relation) -> str:
        """What an edge says of the numbers: ``t → t+1``; nothing where they are equal, or where each goes to each."""
        said = [*filter(None, (self._arrow(target, link) for link in relation.links))]
        for node, limits in ((source, relation.sources), (target, relation.targets)):
            said += [f"{self.letters(node)[at]} = {listed(values)}" for at, values in limits.items()]
        return ", ".join(said if relation.exact else [*said, "some"])

    def in_words(self, edge: FoldedEdge) -> Iterator[tuple[str, str]]:
        """The sources of one target: their names in its letters, and for which numbers: ``z_t'``, ``t' ≥ t``."""
        for relation in edge.relation.one_by_one():
            yield self._in_words(edge.source, edge.target, relation)

    def _in_words(self, source: FoldedNode, target: FoldedNode, relation: Relation) -> tuple[str, str]:
        own, theirs = list(self.letters(source)), self.letters(target)
        linked = {link.source: link for link in relation.links}
        conditions = []
        for position, letter in enumerate(own):
            link = linked.get(position)
            if link is None:
                values = relation.sources.get(position, source.values(position))
                if len(values) == 1:
                    own[position] = str(*values)
                    continue
                own[position] = f"{letter}'" if letter in theirs else letter
                conditions.append(f"{own[position]} = {listed(values)}")
            elif link.shift is not None:
                own[position] = _plus(theirs[link.target], link.shift)
            else:
                letter = own[position] = f"{theirs[link.target]}'"
                conditions.append(_condition(link, theirs[link.target]))
        conditions += [f"where {theirs[at]} = {listed(values)}" for at, values in relation.targets.items()]
        return self.with_words(source, own), ", ".join(conditions if relation.exact else [*conditions, "some of them"])

    def _arrow(self, target: FoldedNode, link: Link) -> str:
        letter = self.letters(target)[link.target]
        if link.shift is not None:
            return f"{letter} → {_plus(letter, -link.shift)}" if link.shift else ""
        if link.order:
            return f"each {_condition(link, letter)}"
        return f"{letter} → {_shifted(letter, [-shift for shift in link.differences])}"


def _plus(letter: str, shift: int) -> str:
    return f"{letter}{shift:+d}" if shift else letter


def _condition(link: Link, letter: str) -> str:
    """Which numbers ``t'`` of the source go with a number ``t`` of the target."""
    if not link.order:
        return f"{letter}' = {_shifted(letter, link.differences)}"
    strictly = {("≥", 1): ">", ("≤", -1): "<"}.get((link.order, link.bound))
    return f"{letter}' {strictly} {letter}" if strictly else f"{letter}' {link.order} {_plus(letter, link.bound)}"


def _shifted(letter: str, shifts: Iterable[int]) -> str:
    """``t, t+1``, or ``t-1 … t+3``."""
    ordered = sorted(shifts)
    if len(ordered) > 3 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{_plus(letter, ordered[0])} … {_plus(letter, ordered[-1])}"
    return ", ".join(_plus(letter, shift) for shift in ordered)


def _column(node: FoldedNode, position: int) -> tuple[int, ...]:
    return tuple(numbers[position] for numbers in node.numbers)


def _names(letters: str) -> Iterator[str]:
    yield from letters
    for number in count(1):
        yield from (f"{letter}{number}" for letter in letters)


def _linked(folding: Folding) -> Iterator[tuple[list[_Number], bool]]:
    """The numbers that vary, in groups of those that go with one another; and whether an edge leads to another step."""
    leader: dict[_Number, _Number] = {
        (node, position): (node, position) for node in folding.nodes for position in range(len(node.varying))
    }

    def led_by(number: _Number) -> _Number:
        while leader[number] != number:
            number = leader[number]
        return number

    moving = []
    for node in folding.nodes:  # a number that is there twice: -KL(q(z_1) || p(z_1))
        first: dict[tuple[int, ...], int] = {}
        for position in range(len(node.varying)):
            same = first.setdefault(_column(node, position), position)
            leader[led_by((node, position))] = led_by((node, same))
    for edge in (*folding.edges, *folding.kin):
        for link in edge.relation.links if edge.relation.exact else ():
            one, other = (edge.source, link.source), (edge.target, link.target)
            leader[led_by(other)] = led_by(one)
            if link.shift != 0:
                moving.append(one)
    groups: dict[_Number, list[_Number]] = {}
    for number in leader:
        groups.setdefault(led_by(number), []).append(number)
    moved = {led_by(number) for number in moving}
    for led, numbers in groups.items():
        yield numbers, led in moved
