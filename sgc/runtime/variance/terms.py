"""The terms of a surrogate, each by itself: what each site adds, and what it would add under other choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgc.emit.emitter import Emitted, emit_values
from sgc.graph import keys
from sgc.graph.derived_nodes import MeanNode, NegationNode, TotalNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Payload
from sgc.passes.downstream import all_costs
from sgc.passes.estimators.score_function import BaselineTermNode, ScoreTermNode
from sgc.passes.objectives.bound_nodes import BoundScoreTermNode
from sgc.runtime.variance.other_baselines import OtherBaselines, admissible

OTHER_TERMS = "terms without a score function"
"""What the densities and the pathwise estimators give."""

AS_IT_IS, NO_BASELINE, ALL_COSTS = "as it is", "without baseline", "without Rao-Blackwellisation"
"""What a score function is multiplied by: the downstream cost less the baseline; the downstream cost; all costs."""


@dataclass(frozen=True)
class Terms:
    """A module that returns, for each run of the program, the value of :data:`OTHER_TERMS`, then for each scored site
    the score function, its weight if it is one of :attr:`weighted`, and the costs of :attr:`choices`; last, if the
    program has checks, whether they hold.
    """

    emitted: Emitted
    emitted_choices: dict[str, tuple[str, ...]]
    """By scored site, those of the choices of cost that differ there, the one that the graph has made first."""
    other_baselines: dict[str, tuple[str, ...]]
    """By scored site, the baselines that it could have instead, which are computed from the downstream costs."""
    weighted: frozenset[str]
    """The scored sites whose score function has elements for enumerated values, and a weight for each."""
    runs: int
    particles: int
    """Over how many particles one call of the module takes the mean of the terms; of a bound 1, which has all in it."""
    summed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By scored site, the dims over which its score function is summed before it is multiplied."""
    shared: int = 1
    """In how many runs the other terms are the same, those of all runs together."""

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """All choices of cost by scored site, the one that the graph has made first."""
        return {site: (*own, *self.other_baselines.get(site, ())) for site, own in self.emitted_choices.items()}

    def surrogates(self, results: list[Tensor], others: OtherBaselines) -> Iterator[tuple[str, str, Tensor]]:
        """A surrogate for each site and choice, whose gradient is that of the term: minus the mean over particles."""
        rest, scores, weights, costs = self._sorted(results)
        for value in rest:
            yield OTHER_TERMS, AS_IT_IS, -value.sum() / (self.particles * self.shared)
        for site, choices in self.choices.items():
            for choice in choices:
                own = costs.get((site, choice))
                if own is None:
                    own = others.left(site, choice, costs[site, self._bare(site)])
                for whole, cost, weight in zip(scores[site], own, weights[site], strict=True):
                    score = whole.sum(self.summed[site]) if self.summed.get(site) else whole
                    if weight is not None:
                        cost = weight * torch.where(weight > 0, cost, 0.0)
                        score = torch.where(weight > 0, score, 0.0)
                    yield site, choice, -(score * cost).sum() / self.particles

    def downstream_costs(self, results: list[Tensor]) -> dict[str, Tensor]:
        """The downstream cost of each scored site in the first run, without its baseline."""
        *_, costs = self._sorted(results)
        return {site: costs[site, self._bare(site)][0] for site in self.emitted_choices}

    def _bare(self, site: str) -> str:
        return NO_BASELINE if NO_BASELINE in self.emitted_choices[site] else AS_IT_IS

    def _sorted(
        self, results: list[Tensor]
    ) -> tuple[
        list[Tensor], dict[str, list[Tensor]], dict[str, list[Tensor | None]], dict[tuple[str, str], list[Tensor]]
    ]:
        """The other terms, score functions and weights by site, and costs by site and choice; of each run in turn."""
        rest: list[Tensor] = []
        scores: dict[str, list[Tensor]] = {}
        weights: dict[str, list[Tensor | None]] = {}
        costs: dict[tuple[str, str], list[Tensor]] = {}
        values = iter(results)
        for _ in range(self.runs):
            rest.append(next(values))
            for site, choices in self.emitted_choices.items():
                scores.setdefault(site, []).append(next(values))
                weights.setdefault(site, []).append(next(values) if site in self.weighted else None)
                for choice in choices:
                    costs.setdefault((site, choice), []).append(next(values).detach())
        return rest, scores, weights, costs


def _addends(graph: StochasticGraph) -> tuple[str, ...]:
    """What the surrogate is the sum of."""
    total: Payload = graph.payload(keys.SURROGATE_LOSS)
    while isinstance(total, (NegationNode, MeanNode)):
        total = graph.payload(total.operand)
    assert isinstance(total, TotalNode)
    return total.operands


def emit_terms(graph: StochasticGraph, forced: tuple[str, ...] = (), *, alternatives: bool = True) -> Terms:
    """Split the surrogate of a graph that has been through the passes.

    The squared errors of learned baselines are left out: they train the baselines, and are no part of the ELBO's
    gradient.

    :param forced: latent sites whose samples are given (:func:`sgc.emit.emitter.emit_surrogate`).
    :param alternatives: also what the terms would be under other choices.
    """
    if keys.BOUND in graph:
        return _terms_of_bound(graph, forced, alternatives=alternatives)
    graph = graph.copy()
    scores = {term.site: term for term in graph.of_type(ScoreTermNode)}
    others = [key for key in _addends(graph) if not isinstance(graph.payload(key), (ScoreTermNode, BaselineTermNode))]
    total = TotalNode(OTHER_TERMS, (), tuple(others))
    graph.add(total, total.operands)
    nodes, choices = [total.key], {}
    for site, term in scores.items():
        score, own = term.operands
        costs = {AS_IT_IS: own}
        if graph.baseline(site) is not None and alternatives:
            costs[NO_BASELINE] = keys.downstream(site)
        everything = all_costs(graph, site)
        if alternatives and everything.costs != graph.downstream_costs(site):
            graph.add(everything, everything.computed_from())
            costs[ALL_COSTS] = everything.key
        nodes += [score, *([term.weight] if term.weight is not None else []), *costs.values()]
        choices[site] = tuple(costs)
    particles = graph.particles
    emitted = emit_values(graph, tuple(nodes), forced=forced)
    instead = {site: admissible(graph, site) for site in choices} if alternatives else {}
    weighted = frozenset(site for site, term in scores.items() if term.weight is not None)
    return Terms(emitted, choices, instead, weighted, particles.runs, particles.in_a_call)


def _terms_of_bound(graph: StochasticGraph, forced: tuple[str, ...], *, alternatives: bool) -> Terms:
    """The terms of a bound of all particles: the gradient of the bound itself, and each site's score term.

    The gain of the importance weighted bound is the bound minus the others', which is its baseline.
    """
    nodes, choices, summed = [keys.BOUNDS], {}, {}
    for term in graph.of_type(BoundScoreTermNode):
        score, factor = term.operands
        costs = {AS_IT_IS: factor}
        if factor == keys.GAIN and alternatives:
            costs[NO_BASELINE] = keys.BOUNDS
        nodes += [score, *costs.values()]
        choices[term.site], summed[term.site] = tuple(costs), term.dims
    runs = graph.particles.runs
    return Terms(emit_values(graph, tuple(nodes), forced=forced), choices, {}, frozenset(), runs, 1, summed, runs)


def gradient(surrogate: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient in each leaf that the surrogate depends on."""
    if not surrogate.requires_grad:
        return {}
    gradients = torch.autograd.grad(surrogate, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {name: value for name, value in zip(leaves, gradients, strict=True) if value is not None}
