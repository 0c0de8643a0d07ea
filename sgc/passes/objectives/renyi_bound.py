"""Bounds that take all particles together: Rényi's, and the importance weighted one.

Of K particles with log weights l_k, each the sum of all costs, Rényi's bound of order alpha (Li and Turner 2016, "Rényi
Divergence Variational Inference") is ``1/(1-alpha) log mean_k exp((1-alpha) l_k)``; of order 0 it is that of importance
weighted autoencoders (Burda, Grosse and Salakhutdinov 2016). It is taken for each element of the plates that all sites
are in, and these are added up. Its gradient is that through what is pathwise, plus, at each site with a score function,

- in Pyro's ``RenyiELBO``: ``log q`` times the normalised weight of the particle, over 1 - alpha. That is the gradient
  of the log of an expectation, which is estimated by one mean: biased, and consistent;
- in ``iwae``: the score function times what the particle adds to the bound, which is the bound minus that in which the
  particle's log weight is the mean of the others'. That does not depend on its own samples, so that the gradient of the
  expected bound is estimated without bias (Mnih and Rezende 2016, "Variational Inference for Monte Carlo Objectives").
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sgc.errors import BaselineError, ReparameterizationError
from sgc.graph import keys
from sgc.graph.derived_nodes import NegationNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, Estimator, Payload, ScorePartNode, SiteNode
from sgc.graph.plan import Plan
from sgc.graph.program import Plate, Program, Site
from sgc.passes.baselines.leave_one_out import sites_carried_over
from sgc.passes.choose_estimators import scored_sites
from sgc.passes.objectives.bound_nodes import (
    BoundNode,
    BoundScoreTermNode,
    BoundsNode,
    BoundSurrogateNode,
    FactorNode,
    GainNode,
    LogWeightNode,
    NormalisedWeightNode,
    OthersBoundsNode,
)


def add_renyi_bound(graph: StochasticGraph, plan: Plan) -> None:
    """Add the nodes of Pyro's ``RenyiELBO``.

    :raises ReparameterizationError: at a rejection sampler, as in Pyro.
    """
    for site in scored_sites(graph):
        if graph.estimator(site) == Estimator.PARTIAL:
            payload = graph.payload(site)
            assert isinstance(payload, SiteNode)
            raise ReparameterizationError(
                f"a {payload.distribution} is a rejection sampler, whose acceptance needs a score function beside a "
                "gradient through the sample, which Pyro's RenyiELBO does not have",
                site=site,
                source=payload.source,
                remedy='take objective="iwae", or TraceGraph_ELBO',
            )
    # A site that the guide alone has is summed over the model's plates only, as Pyro does it.
    dims = _own_dims([site.model.plates for site in _sites(graph) if site.model is not None])
    _add_bounds(graph, plan, dims)
    shape = graph.payload(keys.LOG_WEIGHT).shape
    weight = NormalisedWeightNode(keys.NORMALISED_WEIGHT, shape, plan.alpha, plan.particles)
    # Of the guide's factors, too, that are not reparameterised.
    scored = [part.site for part in graph.of_type(ScorePartNode) if part.part == "score_function"]
    _add_objective(graph, plan, dims, weight, {site: keys.cost_key(site, -1) for site in scored})


def add_importance_weighted_bound(graph: StochasticGraph, plan: Plan) -> None:
    """Add the nodes of the importance weighted bound.

    :raises BaselineError: if particles that run one after another depend on each other, by memory that they write into.
    """
    assert graph.program is not None
    if plan.particles.runs > 1:
        _refuse_carried_over(graph, graph.program)
    densities = [d for site in _sites(graph) for d in (site.model, site.guide) if d is not None]
    dims = _own_dims([density.plates for density in densities])
    _add_bounds(graph, plan, dims)
    shape = graph.payload(keys.LOG_WEIGHT).shape
    if scored_sites(graph):
        graph.add(OthersBoundsNode(keys.OTHERS_BOUNDS, shape, plan.particles))
        graph.add_edge_across_particles(keys.LOG_WEIGHT, keys.OTHERS_BOUNDS)
    gain = GainNode(keys.GAIN, shape)
    _add_objective(graph, plan, dims, gain, {site: keys.score_function(site) for site in scored_sites(graph)})


def _sites(graph: StochasticGraph) -> list[Site]:
    assert graph.program is not None
    return list(graph.program.sites)


def _refuse_carried_over(graph: StochasticGraph, program: Program) -> None:
    carried_over = sites_carried_over(program)
    for name in scored_sites(graph):
        if name in carried_over:
            raise BaselineError(
                "the importance weighted bound needs independent particles, but one run of the program writes what "
                "depends on this site's sample into memory that the next run may read",
                site=name,
                source=program.site(name).source,
                remedy="pass vectorize_particles=True, or do not write into a buffer what depends on a sample",
            )


def _own_dims(stacks: list[tuple[Plate, ...]]) -> tuple[int, ...]:
    """The dims of the plates that not all sites are in (Pyro's ``get_dependent_plate_dims``)."""
    plates = [frozenset(stack) for stack in stacks]
    common = frozenset.intersection(*plates) if plates else frozenset()
    return tuple(sorted({plate.dim for stack in plates for plate in stack - common if plate.dim is not None}))


def _had(dims: Iterable[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in dims if -dim <= len(shape))


def _summed(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for place, size in enumerate(shape) if place - len(shape) not in dims)


def _add_bounds(graph: StochasticGraph, plan: Plan, dims: tuple[int, ...]) -> None:
    costs = list(graph.of_type(CostNode))
    terms = tuple((cost.key, _had(dims, cost.shape)) for cost in costs)
    shape = tuple(torch.broadcast_shapes(*(_summed(cost.shape, dims) for cost in costs)))
    _add(graph, LogWeightNode(keys.LOG_WEIGHT, shape, terms))
    elements = shape[1:] if plan.particles.plate is not None else shape
    _add(graph, BoundsNode(keys.BOUNDS, elements, keys.LOG_WEIGHT, plan.alpha, plan.particles))
    _add(graph, BoundNode(keys.BOUND, (), plan.particles, plan.alpha))


def _add_objective(
    graph: StochasticGraph, plan: Plan, dims: tuple[int, ...], factor: FactorNode, scores: dict[str, str]
) -> None:
    """Add the score terms, the surrogate, and the two losses.

    :param scores: by scored site the key of what is multiplied by the factor.
    """
    if scores:
        _add(graph, factor)
    terms = []
    for site, score in scores.items():
        own = _had(dims, graph.payload(score).shape)
        term = BoundScoreTermNode(keys.score_term(site), (), site, (score, factor.key), own)
        _add(graph, term)
        terms.append(term.key)
    _add(graph, BoundSurrogateNode(keys.SURROGATE, (), plan.particles, tuple(terms)))
    _add(graph, NegationNode(keys.LOSS, (), keys.BOUND))
    _add(graph, NegationNode(keys.SURROGATE_LOSS, (), keys.SURROGATE))


def _add(graph: StochasticGraph, payload: Payload) -> None:
    graph.add(payload, payload.computed_from() or ())
