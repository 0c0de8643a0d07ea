"""The time of a step with each choice of baselines, by which the variance of its gradient is multiplied."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sgc.emit.emitter import emit_surrogate
from sgc.graph.build import build_graph
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode
from sgc.graph.plan import Plan
from sgc.graph.program import Baseline
from sgc.passes.pipeline import run_passes
from sgc.runtime.inspection.drawn_gradient import parameter_leaves
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.variance.other_baselines import DECAYING_AVERAGE, LEAVE_ONE_OUT, PYROS_BETA
from sgc.runtime.variance.terms import AS_IT_IS

_TIMED = 7
"""How often each step is taken; the least time counts."""


def step_times(
    specialization: Specialization,
    tensors: list[Tensor],
    plan: Plan,
    candidates: Mapping[str, tuple[str, ...]],
    choices: Iterable[str],
) -> dict[str, float]:
    """By choice, the CPU time in seconds of loss and gradients in an eager module if all sites had it that can.

    :param candidates: by site what it can have.
    """
    steps = {choice: _step(specialization, tensors, plan, candidates, choice) for choice in choices}
    least = dict.fromkeys(steps, math.inf)
    for _ in range(_TIMED):
        for choice, step in steps.items():
            began = time.process_time()
            step()
            least[choice] = min(least[choice], time.process_time() - began)
    return least


def _step(
    specialization: Specialization,
    tensors: list[Tensor],
    plan: Plan,
    candidates: Mapping[str, tuple[str, ...]],
    choice: str,
) -> Callable[[], object]:
    """Computes loss and gradients once, with a choice at all sites that can have it."""
    program = specialization.capture.program
    has_it = {site for site, choices in candidates.items() if choice in choices}
    sites = [replace(site, baseline=_BASELINES[choice] if site.name in has_it else None) for site in program.sites]
    sites = [new if new.name in candidates else old for new, old in zip(sites, program.sites, strict=True)]
    graph = run_passes(build_graph(replace(program, sites=tuple(sites))), plan)
    emitted = emit_surrogate(graph)
    everything, leaves = parameter_leaves(specialization, tensors)
    known = dict(zip(specialization.emitted.averages, everything[len(tensors) :], strict=True))
    averages = [known.get(key, _zeros(graph, key)) for key in emitted.averages]

    def step() -> object:
        with torch.enable_grad():
            surrogate: Tensor = emitted.module(*everything[: len(tensors)], *averages)[1]
        if not surrogate.requires_grad:
            return None
        gradients = torch.autograd.grad(surrogate, [*leaves.values()], allow_unused=True)
        if surrogate.is_cuda:
            torch.cuda.synchronize(surrogate.device)
        return gradients

    return step


_BASELINES = {
    AS_IT_IS: None,
    LEAVE_ONE_OUT: Baseline(None, None, None, decaying_average=False, beta=PYROS_BETA, leave_one_out=True),
    DECAYING_AVERAGE: Baseline(None, None, None, decaying_average=True, beta=PYROS_BETA),
}


def _zeros(graph: StochasticGraph, key: str) -> Tensor:
    node = graph.payload(key)
    assert isinstance(node, BaselineNode)
    return torch.zeros(node.average_shape, dtype=node.dtype, device=node.device)
