"""Finds out why the loss of a compiled step was NaN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sgc.errors import NanLossError
from sgc.graph.enumeration_nodes import MarginalCostNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.speculation.branches import first_failed
from sgc.tracing.state.random_state import random_state, restore_random_state

_ATTEMPTS = 20


def nan_loss_error(step: str, specialization: Specialization, tensors: list[Tensor]) -> NanLossError:
    """The error for a step. The program is run again, eagerly, from the present random state on.

    :param step: which one, in words.
    :param tensors: the tensors of the call; parameters are as they were before the step.
    """
    guilty: list[CostNode] = []
    state = random_state()
    other = first_failed(specialization, tensors) if specialization.tally is not None else None
    restore_random_state(state)
    problem = f"the loss of {step} is NaN; parameters and optimizer are as they were before it"
    if other is not None:
        return NanLossError(
            f"{problem}. Eager Pyro has computed it, because a branch on a sample goes another way than assumed",
            site=other.site,
            source=other.source,
            remedy="look at what that branch does to parameters and values",
        )
    for _ in range(_ATTEMPTS):
        values = specialization.values(tensors)
        guilty = list(_not_finite(specialization.graph, values))
        if guilty:
            break
    restore_random_state(state)
    if not guilty:
        return NanLossError(
            f"{problem}. In {_ATTEMPTS} more runs with the same parameters all costs were finite, so that it is the "
            "random draw that matters",
            remedy="look for a log of 0, a division by 0, or an overflow that rare samples lead to",
        )
    names = ", ".join(cost.key for cost in guilty)
    site = guilty[0].site
    return NanLossError(
        f"{problem}. Not finite: {names}",
        site=site,
        source=specialization.capture.program.site(site).source,
        remedy="check the parameters of this distribution and the value that it scores; a smaller learning rate or "
        "clipped gradients may help",
    )


def _not_finite(graph: StochasticGraph, values: Mapping[str, Tensor]) -> Iterator[CostNode]:
    """The costs that are not finite; of a sum over sites of the model the factors that are NaN."""
    for key in graph.costs():
        cost = graph.payload(key)
        assert isinstance(cost, CostNode)
        if torch.isfinite(values[cost.fx]).all():
            continue
        factors = map(graph.payload, cost.factors if isinstance(cost, MarginalCostNode) else ())
        undefined = [f for f in factors if isinstance(f, CostNode) and torch.isnan(values[f.fx]).any()]
        yield from undefined or [cost]
