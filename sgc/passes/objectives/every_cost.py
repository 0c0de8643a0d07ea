"""The costs that Pyro's ``Trace_ELBO`` multiplies a score function by: all of them, whatever they depend on.

They are summed over the plates that the site is not in, which is all the Rao-Blackwellisation that there is (Ranganath
et al. 2014). They are ``log p`` of every site of the model, less ``log q`` where the guide has it, in Pyro's order; a
site that only the guide has is left out, as Pyro leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sgc.graph import keys
from sgc.graph.cost_sums import DownstreamCostNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode
from sgc.graph.plan import Plan
from sgc.graph.program import Plate
from sgc.passes.choose_estimators import scored_sites
from sgc.passes.downstream import add_partial_sum, summed_to_plates
from sgc.passes.expectations import Expectations


@dataclass(frozen=True)
class EveryCostNode(DownstreamCostNode):
    """All costs of the model's sites, summed to a site's plates, whether they depend on its sample or not."""

    kind: ClassVar[str] = "every cost"

    def lawful_costs(self, graph: StochasticGraph) -> frozenset[str]:
        """Every ``log p``, and ``-log q`` of the sites that the model has."""
        costs = list(graph.of_type(CostNode))
        in_model = {cost.site for cost in costs if cost.sign > 0}
        return frozenset(cost.key for cost in costs if cost.site in in_model)


def plan_every_cost(graph: StochasticGraph, plan: Plan) -> None:
    """Add the sums of all costs of the same frames, and for every scored site what it is multiplied by."""
    sites = scored_sites(graph)
    if not sites:
        return
    costs = list(graph.of_type(CostNode))
    guide = {cost.site: cost for cost in costs if cost.sign < 0}
    by_frames: dict[frozenset[Plate], list[str]] = {}
    summed: list[str] = []
    for cost in costs:
        if cost.sign > 0:
            of_site = [cost, guide[cost.site]] if cost.site in guide else [cost]
            keys_of_site = [one.key for one in of_site]
            summed += keys_of_site
            frames = frozenset(cost.plates)
            by_frames.setdefault(frames, []).append(_sum(graph, frames, keys_of_site))
    terms = [(frames, _sum(graph, frames, addends)) for frames, addends in by_frames.items()]
    expectations = Expectations(graph)
    for site in sites:
        node = summed_to_plates(expectations, EveryCostNode, keys.downstream(site), site, frozenset(summed), terms)
        graph.add(node, node.computed_from())


def _sum(graph: StochasticGraph, frames: frozenset[Plate], addends: list[str]) -> str:
    """The key of the sum of some nodes, added where there are several."""
    return addends[0] if len(addends) == 1 else add_partial_sum(graph, frames, tuple(addends))
