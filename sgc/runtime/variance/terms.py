"""The terms of a surrogate, each by itself: what each site adds, and what it would add under other choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sgc.emit.emitter import Emitted, emit_values
from sgc.graph import keys
from sgc.graph.derived_nodes import SurrogateTermNode, TotalNode
from sgc.graph.graph import StochasticGraph
from sgc.passes.downstream import all_costs
from sgc.passes.estimators.score_function import BaselineTermNode, ScoreTermNode

OTHER_TERMS = "terms without a score function"
"""What the densities and the pathwise estimators give."""

AS_IT_IS, NO_BASELINE, ALL_COSTS = "as it is", "without baseline", "without Rao-Blackwellisation"
"""What a score function is multiplied by: the downstream cost less the baseline; the downstream cost; all costs."""


@dataclass(frozen=True)
class Terms:
    """A module that returns, for each run of the program, the value of :data:`OTHER_TERMS`, then for each scored site
    the score function and the costs of :attr:`choices`; last, if the program has checks, whether they hold.
    """

    emitted: Emitted
    choices: dict[str, tuple[str, ...]]
    """By scored site, those of the choices of cost that differ there, the one that the graph has made first."""
    runs: int
    particles: int
    """Over how many particles one call of the module sums."""

    def surrogates(self, results: list[Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        """A surrogate for each site and choice, whose gradient is that of the term: minus the mean over particles."""
        per_run = 1 + sum(1 + len(choices) for choices in self.choices.values())
        for start in range(0, self.runs * per_run, per_run):
            values = iter(results[start : start + per_run])
            yield OTHER_TERMS, AS_IT_IS, -next(values) / self.particles
            for site, choices in self.choices.items():
                score = next(values)
                for choice in choices:
                    yield site, choice, -(score * next(values).detach()).sum() / self.particles


def emit_terms(graph: StochasticGraph, forced: tuple[str, ...] = ()) -> Terms:
    """Split the surrogate of a graph that has been through the passes.

    The squared errors of learned baselines are left out: they train the baselines, and are no part of the ELBO's
    gradient.

    :param forced: latent sites whose samples are given (:func:`sgc.emit.emitter.emit_surrogate`).
    """
    graph = graph.copy()
    scores = {term.site: term for term in graph.of_type(ScoreTermNode)}
    others = [
        term for term in graph.of_type(SurrogateTermNode) if not isinstance(term, (ScoreTermNode, BaselineTermNode))
    ]
    total = TotalNode(OTHER_TERMS, (), tuple(term.key for term in others))
    graph.add(total, total.operands)
    nodes, choices = [total.key], {}
    for site, term in scores.items():
        score, own = term.operands
        costs = {AS_IT_IS: own}
        if graph.baseline(site) is not None:
            costs[NO_BASELINE] = keys.downstream(site)
        everything = all_costs(graph, site)
        if everything.costs != graph.downstream_costs(site):
            graph.add(everything, everything.computed_from())
            costs[ALL_COSTS] = everything.key
        nodes += [score, *costs.values()]
        choices[site] = tuple(costs)
    particles = graph.particles
    emitted = emit_values(graph, tuple(nodes), forced=forced)
    return Terms(emitted, choices, particles.runs, particles.in_a_call)


def gradient(surrogate: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient in each leaf that the surrogate depends on."""
    if not surrogate.requires_grad:
        return {}
    gradients = torch.autograd.grad(surrogate, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {name: value for name, value in zip(leaves, gradients, strict=True) if value is not None}
