"""Nodes of expectations over the values of enumerated sites beside other estimators: probabilities, expected costs.

The values of each enumerated site are in a dim of their own, to the left of the plates; what depends on several sites
has a dim for each, so that sums and products broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.cost_sums import Reduction, SummedCostsNode
from sgc.graph.nodes import CostNode, Payload, ProgramTermNode, ValuesIn

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


@dataclass(frozen=True)
class ProbabilityNode(ProgramTermNode):
    """The probability of each value of an enumerated site, without scale and mask, given the values of its parents."""

    kind: ClassVar[str] = "probability"

    values_in: ValuesIn


@dataclass(frozen=True)
class MarginalProbabilityNode(Payload):
    """A product of probabilities, ``factors``, summed over the values of ``site``, which are in ``dim``."""

    kind: ClassVar[str] = "marginal probability"

    site: str
    dim: int
    factors: tuple[str, ...]
    values_in: ValuesIn

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return ProbabilityNode, MarginalProbabilityNode

    def computed_from(self) -> tuple[str, ...]:
        return self.factors

    def compute(self, run: Arithmetic) -> Value:
        """The sum of the product."""
        return run.call(torch.sum, product(run, self.factors), self.dim, True)


@dataclass(frozen=True)
class WeightNode(Payload):
    """The probability of the values of enumerated sites that the score function of ``site`` and its cost have elements
    for, without its gradient: the product of ``factors``.
    """

    kind: ClassVar[str] = "weight"

    site: str
    factors: tuple[str, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return ProbabilityNode, MarginalProbabilityNode

    def computed_from(self) -> tuple[str, ...]:
        return self.factors

    def compute(self, run: Arithmetic) -> Value:
        """The detached product."""
        return run.call(torch.detach, product(run, self.factors))


@dataclass(frozen=True)
class ExpectationNode(SummedCostsNode):
    """The expectation of a sum of costs over the values of ``site``, which are in ``dim``.

    Each of ``terms`` is a cost, or the expectation of costs over sites that were drawn later, with the plates that it
    is summed over first. ``detached`` are the costs through which no gradient passes: ``-log q`` of sites without a
    pathwise gradient, whose own part of it is zero in expectation. ``plates`` are those of the result.
    """

    kind: ClassVar[str] = "expectation"

    site: str
    dim: int
    probability: str
    terms: tuple[Reduction, ...]
    detached: frozenset[str]
    values_in: ValuesIn

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return CostNode, SummedCostsNode, ProbabilityNode

    def summed(self) -> tuple[str, ...]:
        return tuple(term.addend for term in self.terms)

    def computed_from(self) -> tuple[str, ...]:
        return self.probability, *self.summed()

    def compute(self, run: Arithmetic) -> Value:
        """The sum of probability times cost; a cost may be infinite where the probability is zero."""
        total: Value | None = None
        for term in self.terms:
            value = run.signed(term.addend)
            if term.addend in self.detached:
                value = run.call(torch.detach, value)
            value = term.apply(run, value)
            total = value if total is None else run.call(torch.add, total, value)
        assert total is not None
        weight = run.value(self.probability)
        possible = run.call(torch.where, run.call(torch.gt, weight, 0), total, 0.0)
        return run.call(torch.sum, run.call(torch.mul, weight, possible), self.dim, True)

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """The site has its values at once, and what is added up depends on it; none of it has the dim any more."""
        if graph.program is not None and graph.program.site(self.site).enumerated is None:
            yield f"{self.key!r} is over the values of {self.site!r}, which is not enumerated"
        if any(site == self.site for site, _ in self.values_in):
            yield f"{self.key!r} still has a dim for the values of {self.site!r}"


def product(run: Arithmetic, keys: tuple[str, ...]) -> Value:
    """The product of some nodes' values."""
    total = run.value(keys[0])
    for key in keys[1:]:
        total = run.call(torch.mul, total, run.value(key))
    return total
