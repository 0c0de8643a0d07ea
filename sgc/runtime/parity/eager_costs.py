"""What a cost node is in the traces of eager Pyro, without its sign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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


def take_closed_form(guide_site: Any, model_site: Any) -> None:
    """Let the model's density in a trace be minus the closed form of both, and the guide's zero."""
    divergence = analytic_divergence(guide_site, model_site)
    assert divergence is not None
    model_site["log_prob"], model_site["log_prob_sum"] = -divergence, -divergence.sum()
    nothing = torch.zeros_like(divergence)
    guide_site["log_prob"], guide_site["log_prob_sum"] = nothing, nothing.sum()
    guide_site["score_parts"] = guide_site["score_parts"]._replace(log_prob=nothing, entropy_term=0)
