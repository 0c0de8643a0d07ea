"""Eager Pyro's ``TraceGraph_ELBO``, with what Pyro does not know: leave-one-out baselines, averages with a row for each
datum, enumerated sites.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pyro.infer import TraceGraph_ELBO
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor

from sgc.tracing.enumeration.asked_enumeration import (
    AsksForSeveralValuesError,
    enumerated_as_asked,
    noticing_enumeration,
)
from sgc.tracing.reference.average_rows import pyros_averages_by_rows
from sgc.tracing.reference.enumerable_sites import explain
from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.reference.weighted_costs import WeightedRun
from sgc.tracing.site_options.baseline_options import LEAVE_ONE_OUT
from sgc.tracing.site_options.plate_subsamples import NotedSubsamples
from sgc.tracing.state.random_state import random_state, restore_random_state


class PyroTraceGraph(PyroLoss, TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO``, with leave-one-out baselines, and enumerated sites, if ``as_asked``.

    An average has a row for each datum, where a site asks so, in any case: Pyro's own would be of another shape.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._in_plates: dict[str, tuple[str, ...]] = {}
        self._scores: list[dict[str, tuple[Tensor, Tensor]]] = []
        """For each particle that was run, at the sites with such a baseline: score function and downstream cost."""

    def as_it_asks(self, model: Any, guide: Any) -> tuple[Any, Any]:
        model, guide = super().as_it_asks(model, guide)
        guide = NotedSubsamples()(guide)
        if not self.as_asked:
            return model, guide
        if not self.enumerates:
            return noticing_enumeration(model, guide)
        return enumerated_as_asked(model, guide, self._first_dim, self._in_plates)

    @property
    def _first_dim(self) -> int:
        return -1 - int(self.max_plate_nesting)

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        start = random_state() if self.as_asked and not self.enumerates else None
        try:
            yield from self._traces(model, guide, args, kwargs)
            return
        except AsksForSeveralValuesError:  # in the first run, before anything was given
            self.enumerates = True
        assert start is not None
        restore_random_state(start)
        self.starting_anew()
        if math.isinf(self.max_plate_nesting):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
            restore_random_state(start)
        yield from self._traces(model, guide, args, kwargs)

    def _traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        try:
            yield from super()._get_traces(model, guide, args, kwargs)
        except ValueError as error:
            explain(error, self._in_plates)
            raise

    def value_and_surrogate(self, traces: tuple[Trace, Trace]) -> tuple[Any, Any]:
        names = _take_leave_one_out(traces[1])
        if self.enumerates:
            run = WeightedRun(*traces, self._first_dim, frozenset(names))
            if names:
                scores = (s for s in run.scores() if s.site in names and s.samples_dim is None)
                self._scores.append({s.site: (s.score, s.cost) for s in scores})
            return run.value_and_surrogate()
        if names and self.as_asked:
            self._scores.append(dict(_scores(names, *traces)))
        with pyros_averages_by_rows():
            result: tuple[Any, Any] = self._loss_and_surrogate_loss_particle(*traces)
        return result

    def combined(self, runs: Iterator[tuple[Trace, Trace]]) -> tuple[Any, Any]:
        self._scores = []
        value, surrogate = super().combined(runs)
        return value, surrogate + self._of_leave_one_out()

    def _of_leave_one_out(self) -> Any:
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
