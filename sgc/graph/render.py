"""Prints a stochastic computation graph as text that explains the gradient; what is repeated is folded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import networkx as nx

from sgc.graph import keys
from sgc.graph.derived_nodes import NegationNode, OfAllParticlesNode
from sgc.graph.drawing.wording import Wording
from sgc.graph.enumeration_nodes import ExpectedCostNode, MarginalCostNode
from sgc.graph.estimator_rules import rule_of
from sgc.graph.expectation_nodes import ProbabilityNode
from sgc.graph.graph import StochasticGraph, all_provenances
from sgc.graph.nodes import CostNode, InputNode, SiteNode
from sgc.graph.program import SiteKind


def as_text(graph: StochasticGraph, *, unfold: bool = False) -> str:
    """A paragraph each for inputs, sites and costs; at every latent site, how its gradient is estimated.

    :param unfold: fold nothing.
    """
    return "\n".join(_lines(graph, Wording(graph, unfold=unfold)))


def _lines(graph: StochasticGraph, wording: Wording) -> Iterator[str]:
    latent = graph.sites(SiteKind.LATENT)
    sizes = f"{len(latent)} latent sites, {len(graph.costs())} cost nodes, {len(graph)} nodes"
    yield f"stochastic computation graph: {sizes}"
    if wording.folded:
        yield "what is alike is written once; graph.to_text(unfold=True) writes all"
    shown = [graph.payload(node.first) for node in wording.nodes if node.first in graph]
    yield "inputs"
    for node in shown:
        if isinstance(node, InputNode):
            suffix = ", trained" if node.requires_grad else ""
            yield f"  {wording.name(node.key)}: {node.dtype.removeprefix('torch.')}{list(node.shape)}{suffix}"
    yield "sites"
    for site in shown:
        if isinstance(site, SiteNode):
            yield from _site(graph, site, wording)
    yield "costs"
    provenance = _provenance(graph)
    weights_of = _weights(graph, provenance)
    for cost in shown:
        if isinstance(cost, CostNode) and not isinstance(cost, MarginalCostNode):
            upstream = wording.depends_on(cost.key, provenance) or "no sample"
            weights = wording.depends_on(cost.key, weights_of)
            weighted = f", weighted by {weights}" if weights else ""
            yield f"  {wording.name(cost.key)}: {list(cost.shape)}, depends on {upstream}{weighted}{cost.remark(graph)}"
    for marginal in shown:
        if isinstance(marginal, MarginalCostNode):
            yield from _marginal(graph, marginal, wording, weights_of(marginal.key))
    losses = list(graph.of_type(NegationNode))
    if losses:
        yield "objective"
    for loss in losses:
        yield from _objective(graph, loss)


def _weights(graph: StochasticGraph, provenance: Callable[[str], Collection[str]]) -> Callable[[str], tuple[str, ...]]:
    """Gives the sites of the guide that a cost is weighted by."""
    enumerated = [node.site for node in graph.of_type(ProbabilityNode)]

    def of(cost: str) -> tuple[str, ...]:
        if enumerated:
            upstream = provenance(cost)
            return tuple(site for site in enumerated if site in upstream)
        key = keys.expected_cost(cost)
        node = graph.payload(key) if key in graph else None
        return tuple(site for site in node.weights if site in graph) if isinstance(node, ExpectedCostNode) else ()

    return of


def _marginal(
    graph: StochasticGraph, node: MarginalCostNode, wording: Wording, weighted_by: Collection[str]
) -> Iterator[str]:
    """What is summed out of which densities, and how."""
    plates = f", for each of {', '.join(plate.name for plate in node.plates)}" if node.plates else ""
    weights = ", ".join(weighted_by)
    of_several = len(wording.members(node.key)) > 1
    name = wording.name(node.key) if of_several else node.key
    yield f"  {name}: {list(node.shape)}{plates}{f', weighted by {weights}' if weights else ''}"

    def names(of: Callable[[MarginalCostNode], Collection[str]]) -> Iterable[str]:
        """Those of what it is made of: of one, of all; of several that are written once, those of each."""

        def of_member(key: str) -> list[str]:
            member = graph.payload(key)
            return [known for known in of(member) if known in graph] if isinstance(member, MarginalCostNode) else []

        return wording.listed(node.key, of_member) if of_several else map(wording.name, of_member(node.key))

    sites = dict.fromkeys(names(lambda marginal: marginal.eliminated))
    factors = dict.fromkeys(names(lambda marginal: marginal.factors))
    yield f"      the log of the sum over {'; '.join(sites)}"
    yield f"      of the exp of the sum of {'; '.join(factors)}"
    if not node.sums:
        yield "      there is one value of each, so that nothing is added up"
        return
    sizes = " x ".join(map(str, node.largest))
    yield f"      in {node.sums} sum{'s' * (node.sums != 1)}, the largest over a table of {sizes}"


def _provenance(graph: StochasticGraph) -> Callable[[str], Collection[str]]:
    """The provenance of each node, found at once unless the graph is illegal."""
    return all_provenances(graph).__getitem__ if nx.is_directed_acyclic_graph(graph) else graph.provenance


def _objective(graph: StochasticGraph, loss: NegationNode) -> Iterator[str]:
    payload = graph.payload(loss.operand)
    assert isinstance(payload, OfAllParticlesNode)
    yield f"  {loss.key}: minus {payload.words()}"
    for line in payload.made_of(graph):
        yield f"      {line}"


def _site(graph: StochasticGraph, site: SiteNode, wording: Wording) -> Iterator[str]:
    details = [f"{site.role.value} {site.distribution}", str(list(site.shape))]
    if site.plates:
        details.append("in " + ", ".join(wording.plate(site.key, place) for place in range(len(site.plates))))
    if isinstance(site.scale, str) or (site.scale is not None and site.scale != 1.0):
        details.append(f"scaled by {site.scale}")
    details += ["masked"] * site.masked + ["opaque sampler"] * site.opaque
    yield f"  {wording.name(site.key)}: {', '.join(details)}"
    if site.source is not None:
        yield f"      at {site.source}{_and_others(graph, site, wording)}"
    if site.role is not SiteKind.LATENT:
        return
    if site.estimator is None:
        return
    for line in rule_of(site.estimator).words(graph, site.key, wording):
        yield f"      {line}"


def _and_others(graph: StochasticGraph, site: SiteNode, wording: Wording) -> str:
    """How many other lines the sites stand in that it is folded with."""
    payloads = [graph.payload(member) for member in wording.members(site.key)]
    others = {str(payload.source) for payload in payloads if isinstance(payload, SiteNode)} - {str(site.source)}
    return f" (and {len(others)} other lines)" if others else ""
