"""Decides whether the score function of a site has the entries that a mask below ``to_event`` hides.

A hidden entry is drawn, and its density is left out. Where it reaches a cost, its score function belongs to the
gradient (Schulman et al. 2015, theorem 1). Where it does not, it is independent of all costs, and its score function,
whose expectation is zero, would add nothing but variance.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from sgc.graph import keys
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import ScorePartNode
from sgc.graph.plan import Plan
from sgc.graph.program import HidingMask, Program, SiteKind
from sgc.passes.entry_flow import EntryFlow


def mask_scores(graph: StochasticGraph, plan: Plan) -> None:
    """At each site with such masks keep one of its two score functions."""
    program = graph.program
    assert program is not None
    flow: EntryFlow | None = None
    for name in graph.sites(SiteKind.LATENT):
        guide = program.site(name).guide
        if guide is None or guide.masked_score_function is None:
            continue
        flow = flow or EntryFlow(program.module.graph)
        whole, masked = keys.score_function(name), keys.masked_score_function(name)
        if not any(_reaches_a_cost(program, flow, name, mask) for mask in guide.masks):
            chosen, parents = graph.payload(masked), list(graph.predecessors(masked))
            assert isinstance(chosen, ScorePartNode)
            graph.remove_node(whole)
            graph.add(replace(chosen, key=whole, part="score_function"), parents)
        graph.remove_node(masked)


def _reaches_a_cost(program: Program, flow: EntryFlow, name: str, mask: HidingMask) -> bool:
    """Whether what the mask hides of a sample is in any cost, or in the distribution of another sample."""
    value = program.site(name).value
    assert value is not None
    hiding = program.node(mask.node) if mask.node is not None else None
    touched = flow.touched(program.node(value), hiding, mask.event_dims)
    return any(node in touched for node in _targets(program, name))


def _targets(program: Program, name: str) -> set[fx.Node]:
    drawn = (SiteKind.LATENT, SiteKind.SUBSAMPLE)
    names = {density.log_prob for site in program.sites for density in (site.model, site.guide) if density is not None}
    names |= {marginal.node for marginal in program.marginals}
    others = {site.value for site in program.sites if site.name != name and site.kind in drawn}
    return {program.node(node) for node in names | others if node is not None}
