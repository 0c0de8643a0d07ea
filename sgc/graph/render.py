"""Prints a stochastic computation graph as text that explains the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sgc.graph.nodes import CostNode, Estimator, InputNode, SiteNode
from sgc.graph.program import InputKind, SiteKind

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


def as_text(graph: StochasticGraph) -> str:
    """A paragraph each for inputs, sites and costs; at every latent site, how its gradient is estimated."""
    return "\n".join(_lines(graph))


def _lines(graph: StochasticGraph) -> Iterator[str]:
    latent = graph.sites(SiteKind.LATENT)
    sizes = f"{len(latent)} latent sites, {len(graph.costs())} cost nodes, {len(graph)} nodes"
    yield f"stochastic computation graph: {sizes}"
    yield "inputs"
    for node in graph.of_type(InputNode):
        suffix = ", trained" if node.requires_grad else ""
        yield f"  {node.key}: {node.dtype.removeprefix('torch.')}{list(node.shape)}{suffix}"
    yield "sites"
    for site in graph.of_type(SiteNode):
        yield from _site(graph, site)
    yield "costs"
    for cost in graph.of_type(CostNode):
        upstream = ", ".join(sorted(graph.provenance(cost.key))) or "no sample"
        yield f"  {cost.key}: {list(cost.shape)}, depends on {upstream}"


def _site(graph: StochasticGraph, site: SiteNode) -> Iterator[str]:
    details = [f"{site.role.value} {site.distribution}", str(list(site.shape))]
    if site.plates:
        details.append("in " + ", ".join(plate.name for plate in site.plates))
    if isinstance(site.scale, str) or (site.scale is not None and site.scale != 1.0):
        details.append(f"scaled by {site.scale}")
    details += ["masked"] * site.masked + ["opaque sampler"] * site.opaque
    yield f"  {site.key}: {', '.join(details)}"
    if site.source is not None:
        yield f"      at {site.source}"
    if site.role is not SiteKind.LATENT:
        return
    if site.estimator is None:
        return
    yield f"      gradient: {site.estimator.value}{_hidden(graph, site)}"
    if site.estimator is Estimator.PATHWISE:
        return
    downstream, baseline = graph.downstream_cost(site.key), graph.baseline(site.key)
    if downstream is not None:
        costs = " ".join(key if key.startswith("-") else f"+ {key}" for key in graph.costs() if key in downstream.costs)
        yield f"      times: {costs.removeprefix('+ ').replace(' -log', ' - log')}, as {list(downstream.shape)}"
    if baseline is not None:
        parts = [f"decaying average (beta {baseline.beta})"] if baseline.average else []
        if baseline.learned:
            parts.append(f"learned from {_upstream(graph, baseline.learned)}")
        yield f"      minus the baseline: {' + '.join(parts)}"


def _hidden(graph: StochasticGraph, site: SiteNode) -> str:
    """What becomes of entries that a mask below ``to_event`` hides."""
    guide = graph.program.site(site.key).guide if graph.program is not None else None
    if guide is None or guide.masked_score_function is None:
        return ""
    if graph.scores_hidden_entries(site.key):
        return ", of hidden entries too: they reach a cost"
    return ", without hidden entries: they reach no cost"


def _upstream(graph: StochasticGraph, key: str) -> str:
    """What a node depends on directly; parameters are only counted where there are many."""
    parents = [graph.payload(parent) for parent in graph.predecessors(key)]
    parameters = [p.key for p in parents if isinstance(p, InputNode) and p.role is InputKind.PARAMETER]
    others = [p.key for p in parents if p.key not in parameters]
    return ", ".join([*others, *(parameters if len(parameters) <= 2 else [f"{len(parameters)} parameters"])])
