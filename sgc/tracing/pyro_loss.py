"""Eager Pyro's loss for the options of a compiled one, with what sgc lets a site ask for and Pyro does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pyro
from pyro.infer import TraceGraph_ELBO
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor

from sgc.config import Options
from sgc.graph.program import PARTICLE_PLATE
from sgc.tracing.asked_estimators import AskedEstimators
from sgc.tracing.baseline_options import LEAVE_ONE_OUT


class PyroLoss(TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO``, with the estimators that sites ask for and with leave-one-out baselines.

    :param as_asked: leave these out instead, so that the numbers are Pyro's own.
    """

    def __init__(self, *, as_asked: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.as_asked = as_asked
        self._scores: list[dict[str, tuple[Tensor, Tensor]]] = []
        """For each particle that was run, at the sites with such a baseline: score function and downstream cost."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with AskedEstimators() if self.as_asked else nullcontext():
            traces: tuple[Trace, Trace] = super()._get_trace(model, guide, args, kwargs)
        return traces

    def _loss_and_surrogate_loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self._scores = []
        loss, surrogate = super()._loss_and_surrogate_loss(model, guide, args, kwargs)
        return loss, surrogate + self.of_leave_one_out()

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any]:
        names = _take_leave_one_out(guide_trace)
        if names and self.as_asked:
            self._scores.append(dict(_scores(names, model_trace, guide_trace)))
        result: tuple[Any, Any] = super()._loss_and_surrogate_loss_particle(model_trace, guide_trace)
        return result

    def of_leave_one_out(self) -> Any:
        """What the leave-one-out baselines add to the surrogate loss of the particles that were run, which are then
        forgotten: score function times the mean of the other particles' downstream costs.
        """
        scores, self._scores = self._scores, []
        if self.num_particles < 2 or not scores:
            return 0.0
        total: Any = 0.0
        for name, (score, cost) in scores[0].items():
            if self.vectorize_particles:
                others = cost.sum(-self.max_plate_nesting, keepdim=True) - cost
                total = total + (score * others).sum()
                continue
            costs = [particle[name][1] for particle in scores]
            for particle, own in zip(scores, costs, strict=True):
                total = total + (particle[name][0] * (sum(costs) - own)).sum()
        return total / (self.num_particles - 1) / self.num_particles


def _take_leave_one_out(guide_trace: Trace) -> list[str]:
    """Take the option, which Pyro would refuse, from the sites of a trace; those that have it switched on."""
    names = []
    nodes: dict[str, Any] = dict(guide_trace.nodes)
    for name, site in nodes.items():
        options = site["infer"].get("baseline") if site["type"] == "sample" else None
        if isinstance(options, Mapping) and LEAVE_ONE_OUT in options:
            names += [name] * (options[LEAVE_ONE_OUT] is True and not site["is_observed"])
            kept = {option: value for option, value in options.items() if option != LEAVE_ONE_OUT}
            site["infer"] = {**site["infer"], "baseline": kept}
    return names


def _scores(names: list[str], model_trace: Trace, guide_trace: Trace) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Score function and downstream cost of some sites, as Pyro finds them."""
    costs: dict[str, MultiFrameTensor] = {name: MultiFrameTensor() for name in names}
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for site in trace.nodes.values():
            if site["type"] == "sample":
                for name in costs.keys() & get_provenance(site["log_prob_sum"]):
                    costs[name].add((site["cond_indep_stack"], sign * site["log_prob"]))
    for name, cost in costs.items():
        if cost:
            site = guide_trace.nodes[name]
            downstream = detach_provenance(cost.sum_to(site["cond_indep_stack"])).detach()
            yield name, (detach_provenance(site["score_parts"].score_function), downstream)


def pyro_elbo(
    options: Options, max_plate_nesting: float | None = None, make: Callable[..., PyroLoss] = PyroLoss
) -> PyroLoss:
    """Pyro's own loss for the same options."""
    elbo = make(
        num_particles=options.num_particles,
        vectorize_particles=options.vectorize_particles,
        max_plate_nesting=options.max_plate_nesting,
    )
    if max_plate_nesting is not None:
        elbo.max_plate_nesting = max_plate_nesting
    return elbo


def pyro_elbo_of_a_run(options: Options, max_plate_nesting: float | None = None) -> PyroLoss:
    """Pyro's loss of one run of the program: all particles if they are vectorised, else one."""
    elbo = pyro_elbo(options, max_plate_nesting)
    elbo.num_particles = options.num_particles if options.vectorize_particles else 1
    return elbo


def in_a_plate_of_particles(
    program: Callable[..., Any], options: Options, max_plate_nesting: float
) -> Callable[..., Any]:
    """The model or guide as Pyro runs it: in an outermost plate of all particles, where these are vectorised.

    :param max_plate_nesting: that plate counted.
    """
    if not options.vectorize_particles or options.num_particles == 1:
        return program
    inside: Callable[..., Any] = pyro.plate(PARTICLE_PLATE, options.num_particles, dim=-int(max_plate_nesting))(program)
    return inside
