"""Eager Pyro's ``TraceMeanField_ELBO``."""

from __future__ import annotations

from typing import Any

from pyro.infer import TraceMeanField_ELBO
from pyro.poutine import Trace

from sgc.tracing.reference.pyro_loss import PyroLoss


class PyroMeanField(PyroLoss, TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO``."""

    def value_and_surrogate(self, traces: tuple[Trace, Trace]) -> tuple[Any, Any]:
        loss, surrogate = self._differentiable_loss_particle(*traces)
        return -loss, surrogate
