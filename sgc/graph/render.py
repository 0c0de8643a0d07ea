"""Prints a stochastic computation graph as text that explains the gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sgc.graph.derived_nodes import MeanNode, NegationNode, SurrogateTermNode, TotalNode
from sgc.graph.estimator_rules import rule_of
from sgc.graph.nodes import CostNode, InputNode, Payload, SiteNode
from sgc.graph.program import Particles, SiteKind

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
    losses = list(graph.of_type(NegationNode))
    if losses:
        yield "objective"
    for loss in losses:
        yield from _objective(graph, loss)


def _objective(graph: StochasticGraph, loss: NegationNode) -> Iterator[str]:
    mean = graph.payload(loss.operand)
    assert isinstance(mean, MeanNode)
    total = graph.payload(mean.operand)
    assert isinstance(total, TotalNode)
    yield f"  {loss.key}: minus {total.key}{_over(mean.particles)}"
    addends = Counter((_noun(payload), payload.subtracted) for payload in map(graph.payload, total.operands))
    words = [
        f"{'-' if subtracted else '+'} {count} {noun}{'s' * (count > 1)}"
        for (noun, subtracted), count in addends.items()
    ]
    yield f"      {total.key}: {' '.join(words).removeprefix('+ ') or '0'}"


def _noun(payload: Payload) -> str:
    if isinstance(payload, SurrogateTermNode):
        return payload.noun
    return "log q term" if payload.subtracted else "log p term"


def _over(particles: Particles) -> str:
    if particles.count == 1:
        return ""
    how = f"in the plate {particles.plate}" if particles.plate else "one after another"
    return f", the mean over {particles.count} particles, {how}"


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
    for line in rule_of(site.estimator).words(graph, site.key):
        yield f"      {line}"
