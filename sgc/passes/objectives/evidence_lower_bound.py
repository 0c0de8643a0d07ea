"""The ELBO, and the surrogate whose gradient is the estimator of its gradient.

The terms of the surrogate are Pyro's (``TraceGraph_ELBO``, after Schulman et al. 2015, section 3.2): every ``log p``;
minus the entropy term of each guide site, which is ``log q`` where that has a pathwise gradient, or minus the closed
form that stands for both; and what the sites' estimators add. Value and surrogate are means over particles, and are
negated: losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.derived_nodes import MeanNode, NegationNode, SurrogateTermNode, TotalNode
from sgc.graph.estimator_rules import rule_of
from sgc.graph.expectation_nodes import ExpectationNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, Payload, ScorePartNode
from sgc.graph.plan import Plan
from sgc.passes.choose_estimators import scored_sites
from sgc.passes.expectations import Expectations
from sgc.passes.objectives.closed_forms import DivergenceNode, DivergenceTermNode


@dataclass(frozen=True)
class CostTermNode(SurrogateTermNode):
    """The sum of all elements of a ``log p``."""

    noun: ClassVar[str] = "cost term"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (CostNode,)

    def compute(self, run: Arithmetic) -> Value:
        """The sum, the one that the ELBO has."""
        return run.total(self.operands[0])


@dataclass(frozen=True)
class EntropyTermNode(SurrogateTermNode):
    """The sum of all elements of an entropy term."""

    noun: ClassVar[str] = "entropy term"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (ScorePartNode,)

    @property
    def subtracted(self) -> bool:
        return True

    def compute(self, run: Arithmetic) -> Value:
        """The sum."""
        return run.total(self.operands[0])


@dataclass(frozen=True)
class ExpectationTermNode(SurrogateTermNode):
    """The sum of all elements of an expectation over values."""

    noun: ClassVar[str] = "expectation term"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (ExpectationNode,)

    def compute(self, run: Arithmetic) -> Value:
        """The sum, the one that the ELBO has."""
        return run.total(self.operands[0])


def add_elbo(graph: StochasticGraph, plan: Plan) -> None:
    """Add the nodes from costs and terms to ``loss`` and ``surrogate_loss``."""
    addends = [graph.payload(key) for key in Expectations(graph).of(graph.costs())]
    costs = [addend for addend in addends if isinstance(addend, CostNode)]
    terms: list[SurrogateTermNode] = [
        CostTermNode(keys.cost_term(cost.site), (), cost.site, (cost.key,)) for cost in costs if cost.sign > 0
    ]
    for divergence in costs:
        if isinstance(divergence, DivergenceNode):
            key = keys.divergence_term(divergence.site)
            terms.append(DivergenceTermNode(key, (), divergence.site, (divergence.key,)))
    whole = {cost.site for cost in costs if cost.subtracted}
    for part in list(graph.of_type(ScorePartNode)):
        if part.part == "entropy_term" and part.site in whole:
            terms.append(EntropyTermNode(keys.entropy_term_of(part.site), (), part.site, (part.key,)))
    for expectation in addends:
        if isinstance(expectation, ExpectationNode):
            key = keys.expectation_term(expectation.key)
            terms.append(ExpectationTermNode(key, (), expectation.site, (expectation.key,)))
    _add_total(graph, keys.ELBO, addends)
    for site in scored_sites(graph):
        terms += rule_of(graph.estimator(site)).add_terms(graph, site)
    for term in terms:
        graph.add(term, term.computed_from())
    _add_total(graph, keys.SURROGATE, terms)
    for total, loss in ((keys.ELBO, keys.LOSS), (keys.SURROGATE, keys.SURROGATE_LOSS)):
        mean = keys.mean_over_particles(total)
        graph.add(MeanNode(mean, (), plan.particles, total), [total])
        graph.add(NegationNode(loss, (), mean), [mean])


def _add_total(graph: StochasticGraph, key: str, addends: Sequence[Payload]) -> None:
    operands = tuple(addend.key for addend in addends)
    graph.add(TotalNode(key, (), operands), operands)
