"""Eager Pyro's ``TraceEnum_ELBO``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions.util import is_identically_zero
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine import Trace

from sgc.tracing.reference.enumerable_sites import EnumerableSites, explain
from sgc.tracing.reference.pyro_loss import PyroLoss


class PyroTraceEnum(PyroLoss, TraceEnum_ELBO):
    """Pyro's ``TraceEnum_ELBO``, whose value is its own surrogate."""

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        sites = EnumerableSites()
        try:
            yield from super()._get_traces(sites(model), sites(guide), args, kwargs)
        except ValueError as error:
            explain(error, sites.in_plates)
            raise

    def finished(self, traces: tuple[Trace, Trace]) -> tuple[Trace, Trace]:
        model_trace, guide_trace = traces
        guide_trace.pack_tensors()
        model_trace.pack_tensors(guide_trace.plate_to_symbol)
        return traces

    def value_and_surrogate(self, traces: tuple[Trace, Trace]) -> tuple[Any, Any]:
        elbo: Any = _compute_dice_elbo(*traces)
        if is_identically_zero(elbo):
            return 0.0, 0.0
        return elbo.detach(), -elbo
