"""Nodes of sums of costs: those that are shared, and the downstream cost of a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.nodes import CostNode, Payload, ValuesIn
from sgc.graph.program import Plate

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


@dataclass(frozen=True)
class SummedCostsNode(Payload):
    """Costs that were added up, of which further sums may be made.

    ``plates`` are those that the sum has elements for.
    """

    plates: frozenset[Plate]

    def summed(self) -> tuple[str, ...]:
        """The keys of what is added up: costs, and other sums of costs."""
        raise NotImplementedError


@dataclass(frozen=True)
class PartialSumNode(SummedCostsNode):
    """A sum of costs, and of other sums, of the same frames, shared between downstream costs."""

    kind: ClassVar[str] = "partial sum"

    addends: tuple[str, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return CostNode, SummedCostsNode

    def summed(self) -> tuple[str, ...]:
        return self.addends

    def computed_from(self) -> tuple[str, ...]:
        return self.addends

    def compute(self, run: Arithmetic) -> Value:
        """The sum of the addends, each with its sign."""
        total = run.signed(self.addends[0])
        for addend in self.addends[1:]:
            total = run.call(torch.add, total, run.signed(addend))
        return total


@dataclass(frozen=True)
class Reduction:
    """An addend of a downstream cost: which node, the dims to sum over (kept), then the ones squeezed away."""

    addend: str
    dims: tuple[int, ...]
    leading_ones: int = 0

    def apply(self, run: Arithmetic, value: Value) -> Value:
        """The addend's value, reduced."""
        for dim in self.dims:
            value = run.call(torch.sum, value, dim, True)
        for _ in range(self.leading_ones):
            value = run.call(torch.squeeze, value, 0)
        return value


@dataclass(frozen=True)
class DownstreamCostNode(Payload):
    """The downstream cost of a site: the cost nodes whose provenance holds it, summed to the site's plates.

    ``values_in`` are the enumerated sites above it that it has an element for each value of.
    """

    kind: ClassVar[str] = "downstream cost"

    site: str
    costs: frozenset[str]
    terms: tuple[Reduction, ...]
    values_in: ValuesIn = ()

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return CostNode, SummedCostsNode

    def computed_from(self) -> tuple[str, ...]:
        return tuple(term.addend for term in self.terms)

    def lawful_costs(self, graph: StochasticGraph) -> frozenset[str]:
        """Those that it must be the sum of: the cost nodes that depend on the site."""
        return graph.downstream_costs(self.site)

    def compute(self, run: Arithmetic) -> Value:
        """The sum of the terms, each reduced to the site's plates."""
        total: Value | None = None
        for term in self.terms:
            value = term.apply(run, run.signed(term.addend))
            total = value if total is None else run.call(torch.add, total, value)
        assert total is not None
        return total


def costs_summed(graph: StochasticGraph, key: str) -> list[str]:
    """The keys of the costs that a sum is made of, with repetitions; of any other node its own key."""
    payload = graph.payload(key) if key in graph else None
    if isinstance(payload, SummedCostsNode):
        return [cost for addend in payload.summed() for cost in costs_summed(graph, addend)]
    return [key]
