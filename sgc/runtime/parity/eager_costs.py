"""What a cost node is in the traces of eager Pyro, without its sign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sgc.graph.nodes import CostNode
from sgc.passes.objectives.closed_forms import DivergenceNode
from sgc.tracing.analytic_divergence import analytic_divergence


def eager_cost(cost: CostNode, model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> Tensor:
    """The log density of a site, or the closed form of its two."""
    if isinstance(cost, DivergenceNode):
        divergence = analytic_divergence(guide_sites[cost.site], model_sites[cost.site])
        assert divergence is not None
        return divergence
    log_prob: Tensor = (model_sites if cost.sign > 0 else guide_sites)[cost.site]["log_prob"]
    return log_prob
