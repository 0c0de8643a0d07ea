"""The score-function estimator: score function times downstream cost (Schulman et al. 2015, theorem 1).

The costs that do not depend on the site's sample are left out, and a baseline may be subtracted from the others: the
expectation stays, the variance falls (Mnih and Gregor 2014, section 2.2). A learned baseline is trained by its squared
error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.cost_sums import DownstreamCostNode
from sgc.graph.derived_nodes import DetachNode, DifferenceNode, SurrogateTermNode
from sgc.graph.estimator_rules import EstimatorRule, Needs, Sampler
from sgc.graph.expectation_nodes import WeightNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, Estimator, InputNode, Payload, ScorePartNode
from sgc.graph.program import InputKind
from sgc.passes.expectations import Expectations

if TYPE_CHECKING:
    from sgc.graph.drawing.wording import Wording


@dataclass(frozen=True)
class ScoreTermNode(SurrogateTermNode):
    """The sum of a score function times a detached cost: ``operands`` are these two.

    Where they have an element for each value of enumerated sites, ``weight`` is the key of its probability.
    """

    noun: ClassVar[str] = "score term"

    weight: str | None = None

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return ScorePartNode, DetachNode, WeightNode

    def computed_from(self) -> tuple[str, ...]:
        return self.operands if self.weight is None else (*self.operands, self.weight)

    def compute(self, run: Arithmetic) -> Value:
        """The sum of the products; a cost may be infinite where the weight is zero."""
        score, cost = map(run.value, self.operands)
        if self.weight is not None:
            weight = run.value(self.weight)
            possible = run.call(torch.gt, weight, 0)
            cost = run.call(torch.mul, weight, run.call(torch.where, possible, cost, 0.0))
            score = run.call(torch.where, possible, score, 0.0)
        return run.call(torch.sum, run.call(torch.mul, score, cost), name=f"sum_{self.key}")


@dataclass(frozen=True)
class BaselineTermNode(SurrogateTermNode):
    """The squared error of a learned baseline: ``operands`` are the detached downstream cost and the baseline."""

    noun: ClassVar[str] = "baseline term"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return DetachNode, BaselineNode

    @property
    def subtracted(self) -> bool:
        return True

    def compute(self, run: Arithmetic) -> Value:
        """The sum of the squares."""
        cost, baseline = self.operands
        error = run.call(torch.sub, run.value(cost), run.value(baseline))
        return run.call(torch.sum, run.call(torch.pow, error, 2.0), name=f"sum_{self.key}")


_MOVING_SUPPORT = {"Delta", "Pareto", "Uniform"}
"""Distributions whose support depends on their parameters."""


class ScoreFunction(EstimatorRule):
    """Score function times detached downstream cost, less the baseline."""

    estimator: ClassVar[Estimator] = Estimator.SCORE_FUNCTION
    needs: ClassVar[Needs] = Needs(score_function=True, detached_sample=True)

    def refuses(self, sampler: Sampler) -> str | None:
        if sampler.has_rsample:
            return f"a {sampler.distribution} has a reparameterised sample"
        return None if sampler.has_score_function else "the density is masked, all of it"

    def refuses_request(self, sampler: Sampler) -> str | None:
        """A reparameterised sample is detached where it is asked for."""
        if sampler.distribution in _MOVING_SUPPORT:
            return f"the support of a {sampler.distribution} depends on its parameters, which its score function misses"
        if sampler.has_rsample and sampler.has_score_function:
            return f"a {sampler.distribution} is a rejection sampler, which has only that of its acceptance"
        return None

    def add_terms(self, graph: StochasticGraph, site: str) -> list[SurrogateTermNode]:
        downstream, baseline = graph.downstream_cost(site), graph.baseline(site)
        if downstream is None:  # no cost depends on it
            return []
        centred: DownstreamCostNode | DifferenceNode = downstream
        if baseline is not None:
            centred = DifferenceNode(keys.centred_cost(site), downstream.shape, downstream.key, baseline.key)
            graph.add(centred, centred.computed_from())
        operands = keys.score_function(site), _detached(graph, centred)
        weight = _weight(graph, site, downstream)
        terms: list[SurrogateTermNode] = [ScoreTermNode(keys.score_term(site), (), site, operands, weight)]
        if baseline is not None and baseline.learned is not None:
            operands = _detached(graph, downstream), baseline.key
            terms.append(BaselineTermNode(keys.baseline_term(site), (), site, operands))
        return terms

    def breaches(self, graph: StochasticGraph, site: str) -> Iterator[str]:
        if keys.SURROGATE not in graph:
            return
        if keys.score_term(site) not in graph:
            if graph.downstream_costs(site):
                yield f"the scored site {site!r} has no score term"
            return
        term = graph.payload(keys.score_term(site))
        baseline = graph.baseline(site)
        expected = keys.detached(keys.centred_cost(site) if baseline is not None else keys.downstream(site))
        if isinstance(term, ScoreTermNode) and term.operands != (keys.score_function(site), expected):
            yield f"{term.key!r} is made of {list(term.operands)}, not of the site's score function and {expected!r}"

    def words(self, graph: StochasticGraph, site: str, wording: Wording) -> Iterator[str]:
        measured = ", chosen by measurement" if graph.is_measured(site) else ""
        yield f"gradient: {self.estimator.value}{measured}{_hidden(graph, site)}"
        several = graph.program.site(site).enumerated if graph.program is not None else None
        if several is not None:
            yield f"{several.size} samples side by side, each weighted by 1/{several.size}"
        downstream, baseline = graph.downstream_cost(site), graph.baseline(site)
        if downstream is not None:
            costs = wording.sum_of_costs(site, partial(_costs, graph)) or "none of the costs here"
            yield f"times: {costs}, as {list(downstream.shape)}{_for_each(graph, site, downstream, wording)}"
            needless = len(downstream.costs - graph.downstream_costs(site))
            if needless:
                do = "does" if needless == 1 else "do"
                yield f'of these {needless} {do} not depend on its sample; objective="elbo" leaves them out'
        if baseline is not None:
            parts = [baseline.words()] if baseline.words() else []
            if baseline.learned:
                parts.append(f"learned from {_learned_from(graph, site, wording)}")
            yield f"minus the baseline: {' + '.join(parts)}"


def _for_each(graph: StochasticGraph, site: str, downstream: DownstreamCostNode, wording: Wording) -> str:
    """Of which values and samples a downstream cost has an element for each."""
    assert graph.program is not None
    several = {known.name for known in graph.program.sites if known.has_samples}
    above = [name for name, _ in downstream.values_in if name != site]
    values = ", ".join(wording.name(name) for name in above if name not in several)
    samples = ", ".join(wording.name(name) for name in above if name in several)
    own = any(name == site for name, _ in downstream.values_in)
    each = [f"each value of {values}"] * bool(values) + [f"each sample of {samples}"] * bool(samples)
    each += ["each of its samples"] * own
    return f", for {' and '.join(each)}" if each else ""


def _weight(graph: StochasticGraph, site: str, downstream: DownstreamCostNode) -> str | None:
    """The probability of the enumerated values that score function and cost have elements for, added to the graph."""
    assert graph.program is not None
    if not graph.program.enumerates:
        return None
    guide, score = graph.program.site(site).guide, graph.payload(keys.score_function(site))
    assert guide is not None and isinstance(score, ScorePartNode)
    expectations = Expectations(graph)
    values_in = expectations.together([graph.program.values_in(guide, score.fx), downstream.values_in])
    factors = expectations.probability_of(values_in)
    if not factors:
        return None
    shape = tuple(torch.broadcast_shapes(*(graph.payload(key).shape for key in factors)))
    node = WeightNode(keys.weight(site), shape, site, factors)
    graph.add(node, factors)
    return node.key


def _detached(graph: StochasticGraph, payload: Payload) -> str:
    """The key of a node without its gradient, added if it is not there."""
    key = keys.detached(payload.key)
    if key not in graph:
        graph.add(DetachNode(key, payload.shape, payload.key), [payload.key])
    return key


def _hidden(graph: StochasticGraph, site: str) -> str:
    """How entries count that a mask below ``to_event`` hides."""
    guide = graph.program.site(site).guide if graph.program is not None else None
    if guide is None or guide.masked_score_function is None:
        return ""
    if graph.scores_hidden_entries(site):
        return ", of hidden entries too: they reach a cost"
    return ", without hidden entries: they reach no cost"


def _costs(graph: StochasticGraph, site: str) -> list[str]:
    downstream = graph.downstream_cost(site)
    return [key for key in graph.costs() if downstream is not None and key in downstream.costs]


def _learned_from(graph: StochasticGraph, site: str, wording: Wording) -> str:
    """What a baseline depends on directly; parameters are only counted where there are many."""

    def inputs(member: str) -> list[str]:
        key = keys.baseline_input(member)
        return [*graph.predecessors(key)] if key in graph else []

    def is_parameter(key: str) -> bool:
        payload = graph.payload(key)
        return isinstance(payload, InputNode) and payload.role is InputKind.PARAMETER

    others = wording.listed(site, lambda member: [key for key in inputs(member) if not is_parameter(key)])
    count = sum(map(is_parameter, inputs(site)))
    parameters = wording.listed(site, lambda member: [key for key in inputs(member) if is_parameter(key)])
    return ", ".join([*others, *(parameters if count <= 2 else [f"{count} parameters"])])
