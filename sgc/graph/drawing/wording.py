"""The words of the printed graph for what may be folded: names, sums of costs, and what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sgc.graph.drawing.drawn_graph import drawn_graph
from sgc.graph.drawing.folded_names import FoldedNames
from sgc.graph.nodes import SiteNode

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


class Wording:
    """Says of one node what holds of all that are folded with it.

    ``nodes`` are the folded nodes, in the order of the graph.
    """

    def __init__(self, graph: StochasticGraph, *, unfold: bool) -> None:
        self._folding = drawn_graph(graph).fold(unfold=unfold)
        self._names = FoldedNames(self._folding)
        self._graph = graph
        self.nodes = self._folding.nodes

    @property
    def folded(self) -> bool:
        """Whether anything is folded."""
        return any(not node.is_single for node in self.nodes)

    def draws(self, key: str) -> bool:
        """Whether a key is that of a node which is drawn."""
        return key in self._folding.of

    def members(self, key: str) -> tuple[str, ...]:
        """All nodes that a node is folded with."""
        return self._folding.of[key].members

    def name(self, key: str) -> str:
        """``z``, or ``z_t, t = 0 … 29``."""
        node = self._folding.of[key]
        return ", ".join(filter(None, (self._names.name(node), self._names.ranges(node))))

    def of_each(self, key: str, of: Callable[[str], str]) -> str:
        """A name that each node has: of the plate ``rows_3`` of ``z_3`` it is ``rows_t``."""
        node = self._folding.of[key]
        return self._names.of_each(node, [of(member) for member in node.members])

    def plate(self, site: str, place: int) -> str:
        """The name of a plate of a site, by its place."""

        def name(member: str) -> str:
            payload = self._graph.payload(member)
            assert isinstance(payload, SiteNode)
            return payload.plates[place].name

        return self.of_each(site, name)

    def each(self, key: str, of: Callable[[str], Iterable[str]]) -> list[tuple[str, str]]:
        """The names of nodes that go with each node, and under which conditions: ``("z_t'", "t' ≤ t")``."""
        pairs = [(other, member) for member in self.members(key) for other in of(member)]
        return [named for edge in self._folding.between(pairs) for named in self._names.in_words(edge)]

    def depends_on(self, key: str, of: Callable[[str], Iterable[str]]) -> str:
        """The same in words, in the order of the alphabet."""
        return ", ".join(sorted(self.listed(key, of)))

    def listed(self, key: str, of: Callable[[str], Iterable[str]]) -> list[str]:
        """The same, each with its condition."""
        return [f"{name} for {condition}" if condition else name for name, condition in self.each(key, of)]

    def sum_of_costs(self, key: str, of: Callable[[str], Iterable[str]]) -> str:
        """The same as a sum of costs, each with its sign."""
        groups: dict[str, list[str]] = {}
        for name, condition in self.each(key, of):
            groups.setdefault(condition, []).append(name)
        parts = []
        for condition, costs in sorted(groups.items(), key=lambda group: group[0] != ""):
            terms = " ".join(
                cost.replace("-log", "- log", 1) if cost.startswith("-") else f"+ {cost}" for cost in costs
            )
            if not condition:
                parts.append(terms)
            elif condition.startswith("where"):
                parts.append(f"+ ({terms.removeprefix('+ ')} {condition})")
            else:
                terms = terms.removeprefix("+ ")
                parts.append(f"+ the sum over {condition} of " + (f"({terms})" if len(costs) > 1 else terms))
        text = " ".join(parts).removeprefix("+ ")
        return f"-{text[2:]}" if text.startswith("- ") else text
