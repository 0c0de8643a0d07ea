"""The laws of a stochastic computation graph, checked after each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import networkx as nx
import torch
from torch import fx

from sgc.errors import GraphError
from sgc.graph import keys
from sgc.graph.cost_sums import DownstreamCostNode, PartialSumNode, SummedCostsNode, costs_summed
from sgc.graph.derived_nodes import TotalNode
from sgc.graph.effects import dependencies
from sgc.graph.enumeration_nodes import MarginalCostNode
from sgc.graph.estimator_rules import rule_of
from sgc.graph.graph import StochasticGraph, all_provenances
from sgc.graph.nodes import BaselineNode, CostNode, Payload, SiteNode
from sgc.graph.program import Program, SiteKind


def verify(graph: StochasticGraph) -> None:
    """Check every law and report all breaches together.

    :raises GraphError: naming each breach.
    """
    problems = [problem for law in _LAWS for problem in law(graph)]
    if problems:
        raise GraphError("the stochastic computation graph is illegal:\n  - " + "\n  - ".join(problems))


def _has_payloads(graph: StochasticGraph) -> Iterator[str]:
    for key in graph:
        if key not in graph._payloads:
            yield f"{key!r} has no payload"


def _is_acyclic(graph: StochasticGraph) -> Iterator[str]:
    if not nx.is_directed_acyclic_graph(graph):
        yield f"there is a cycle: {' -> '.join(edge[0] for edge in nx.find_cycle(graph))}"


def _edges_are_legal(graph: StochasticGraph) -> Iterator[str]:
    for parent, child in graph.edges:
        if parent in graph._payloads and child in graph._payloads:
            one, other = graph.payload(parent), graph.payload(child)
            if not isinstance(one, other.may_depend_on()):
                yield f"a {other.kind} node may not depend on a {one.kind} node: {parent!r} -> {child!r}"


def _operands_are_parents(graph: StochasticGraph) -> Iterator[str]:
    """What a node says that it computes from is what its edges say."""
    for key in graph:
        payload = graph._payloads.get(key)
        operands = payload.computed_from() if payload is not None else None
        if operands is None:
            continue
        if set(operands) != set(graph.predecessors(key)):
            yield f"{key!r} computes from {sorted(set(operands))} but its parents are {sorted(graph.predecessors(key))}"


def _sums_are_exact(graph: StochasticGraph) -> Iterator[str]:
    """Each downstream cost holds every cost that it must, once, and no other."""
    if not nx.is_directed_acyclic_graph(graph):
        return
    elbo = graph.payload(keys.ELBO) if keys.ELBO in graph else None
    if isinstance(elbo, TotalNode) and any(isinstance(graph.payload(key), SummedCostsNode) for key in elbo.operands):
        counted = sorted(cost for key in elbo.operands for cost in costs_summed(graph, key))
        if counted != sorted(graph.costs()):
            yield f"{elbo.key!r} does not count every cost once: it counts {counted}"
    for node in graph.of_type(DownstreamCostNode):
        if node.site not in graph:
            continue
        summed: list[str] = []
        for term in node.terms:
            summed += costs_summed(graph, term.addend)
        expected = node.lawful_costs(graph)
        if len(summed) != len(set(summed)):
            yield f"{node.key!r} counts a cost twice"
        if set(summed) != expected or node.costs != expected:
            missing, extra = sorted(expected - set(summed)), sorted(set(summed) - expected)
            yield f"{node.key!r} is not the sum of its site's downstream costs: missing {missing}, extra {extra}"


def _estimators_keep_their_laws(graph: StochasticGraph) -> Iterator[str]:
    for name in graph.sites(SiteKind.LATENT):
        site = graph.payload(name)
        assert isinstance(site, SiteNode)
        if site.estimator is None:
            continue
        rule = rule_of(site.estimator)
        if rule.needs.score_function and keys.score_function(name) not in graph:
            yield f"the site {name!r} has no score function, which its estimator needs"
        yield from rule.breaches(graph, name)


def _baselines_are_independent(graph: StochasticGraph) -> Iterator[str]:
    for baseline in graph.of_type(BaselineNode):
        if baseline.site in graph.provenance(baseline.key):
            yield f"{baseline.key!r} depends on the sample of its own site"
        downstream = graph.downstream_cost(baseline.site)
        if downstream is not None and downstream.shape != baseline.shape:
            yield f"{baseline.key!r} has shape {baseline.shape}, its downstream cost {downstream.shape}"


def _nodes_keep_their_laws(graph: StochasticGraph) -> Iterator[str]:
    for payload in graph.of_type(Payload):
        yield from payload.breaches(graph)


def _particles_are_crossed_where_it_is_said(graph: StochasticGraph) -> Iterator[str]:
    for parent, child, data in graph.edges(data=True):
        payload = graph._payloads.get(child)
        if payload is not None and ("across" in data) != payload.crosses_particles:
            whose = "other particles'" if "across" in data else "its own particle's"
            yield f"{child!r} may not depend on {whose} {parent!r}"


def _edges_are_sound(graph: StochasticGraph) -> Iterator[str]:
    """Whatever a cost depends on in the fx graph is upstream of it in this graph."""
    if graph.program is None or not nx.is_directed_acyclic_graph(graph) or any(_has_payloads(graph)):
        return
    actual = _program_provenance(graph.program)
    claimed = all_provenances(graph)
    enumerated = [site for site in graph.program.sites if site.enumerated is not None]
    guide = {site.name: site.guide for site in enumerated}
    densities = ((site.name, density) for site in enumerated for density in (site.model, site.guide))
    own = {density.log_prob: frozenset({name}) for name, density in densities if density is not None}
    for marginal in graph.of_type(MarginalCostNode):
        factors = [graph.payload(key) for key in marginal.factors if key in graph._payloads]
        of_factors = [node.fx for node in factors if isinstance(node, CostNode)]
        own[marginal.fx] = frozenset().union(*(actual[fx] | own.get(fx, frozenset()) for fx in of_factors))
    for cost in graph.of_type(CostNode):
        upstream = actual[cost.fx] | own.get(cost.fx, frozenset())
        for name, density in reversed(guide.items()):
            if name in upstream and density is not None:
                upstream |= actual[density.log_prob]
        if upstream != claimed[cost.key]:
            yield (
                f"{cost.key!r} depends on {sorted(upstream)} in the program but on "
                f"{sorted(claimed[cost.key])} in the graph"
            )


def _program_provenance(program: Program) -> dict[str, frozenset[str]]:
    """The latent sites upstream of each fx node, found in the fx graph itself."""
    own: dict[fx.Node, set[str]] = {}
    for site in program.latent_sites():
        if site.value is not None:
            own.setdefault(program.node(site.value), set()).add(site.name)
    empty: frozenset[str] = frozenset()
    provenance: dict[fx.Node, frozenset[str]] = {}
    for node, parents in dependencies(program.module.graph).items():
        above = {provenance[parent] for parent in parents if provenance[parent]}
        upstream = next(iter(above)) if len(above) == 1 else empty.union(*above)
        provenance[node] = upstream | own[node] if node in own else upstream
    return {node.name: upstream for node, upstream in provenance.items()}


def _shapes_agree(graph: StochasticGraph) -> Iterator[str]:
    for node in graph.of_type(PartialSumNode):
        shapes = [graph.value_shape(key) for key in node.addends if key in graph._payloads]
        if tuple(torch.broadcast_shapes(*shapes)) != node.shape:
            yield f"{node.key!r} has shape {node.shape}, its addends {shapes}"


_LAWS: tuple[Callable[[StochasticGraph], Iterator[str]], ...] = (
    _has_payloads,
    _is_acyclic,
    _edges_are_legal,
    _operands_are_parents,
    _sums_are_exact,
    _estimators_keep_their_laws,
    _baselines_are_independent,
    _nodes_keep_their_laws,
    _particles_are_crossed_where_it_is_said,
    _edges_are_sound,
    _shapes_agree,
)
