"""The loss module behind the ELBO classes: tiers, a fall-back to eager Pyro, and parameters that ``SVI`` can see."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.util import warn_if_nan
from torch import Tensor

from sgc.config import Dynamic, Options
from sgc.emit.backends.protocol import Backend
from sgc.emit.backends.registry import TIERS, backend_of
from sgc.errors import BackendError, CaptureError, DataDependenceError, SgcError, StandInWarning
from sgc.guards.base import Call
from sgc.guards.snapshots import are_alike
from sgc.infer.rewrapped import Rewrapped, are_similar
from sgc.runtime.eager_loss import eager_loss
from sgc.runtime.loss_module import LossModule
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.specializing.unused_versions import NotWorthCapturing
from sgc.runtime.speculation.speculate import tell_parameters
from sgc.runtime.turns import TURN
from sgc.tracing.reference.loss_of_objective import pyro_elbo
from sgc.tracing.site_options.estimator_option import EstimatorOption
from sgc.tracing.source import warn

PATIENCE = 1000
"""How many eager calls of one specialization precede its compilation by Inductor, in the tiered mode."""


@dataclass(frozen=True)
class Settings:
    """What an ELBO class asks of its loss modules.

    ``tiered`` moves each specialization from the first to the second of :data:`sgc.emit.backends.registry.TIERS` after
    :data:`PATIENCE` calls; ``dynamic`` says what is done about a program that cannot be captured.
    """

    options: Options
    tiered: bool
    dynamic: Dynamic


class CompiledELBO(LossModule):
    """A :class:`sgc.LossModule` that stands in for a Pyro ELBO of one model and guide."""

    _needs_captures = False

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], settings: Settings) -> None:
        super().__init__(model, guide, settings.options)
        self._settings = settings
        self._inductor_works = True
        self._pyro = pyro_elbo(settings.options)
        self._wrappers: Rewrapped | None = None
        """Whose program it is of, where that is to take the numbers and tensors of others like it."""

    def _is_of(self, model: Callable[..., Any], guide: Callable[..., Any], settings: Settings) -> bool:
        """Whether this is the loss of these callables, or of others made of the same parts, with these settings."""
        own_model, own_guide = self._program
        same_settings = self._settings is settings or self._settings == settings
        return same_settings and _same(model, own_model) and _same(guide, own_guide)

    def _is_like(self, model: Callable[..., Any], guide: Callable[..., Any]) -> bool:
        """Whether these callables differ from its own in nothing but numbers and tensors."""
        return are_similar(self._program, (model, guide))

    def _tell_of_idle_baselines(self, specialization: Specialization) -> None:
        """Do not warn: Pyro's class ignores them without a warning too."""

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        while not self._eager_only:
            try:
                return super()._called(args, kwargs)
            except NotWorthCapturing:
                return self._uncaptured(Call(args, kwargs))
            except SgcError as error:
                if not self._goes_on_after(error):
                    raise
        with self.param_store_scope():
            return self._eager(args, kwargs)

    def _evaluate(self, call: Call, backend: Backend | None = None) -> Tensor:
        """What :meth:`forward` returns for a program that can be captured; also moves it to the next tier in time."""
        with TURN:
            loss = super()._evaluate(call, backend)
            latest = self._latest()
            with_gradient = torch.is_grad_enabled()
            moves = self._settings.tiered and self._inductor_works and not latest.shares_memory
            if moves and latest.calls(with_gradient=with_gradient) >= PATIENCE:
                first, second = map(backend_of, TIERS)
                if latest.backend_of(with_gradient=with_gradient) is first:
                    latest.use_backend(second, with_gradient=with_gradient)
            if latest.tally is None:
                tell_parameters(self, latest.prototype.params)
            return loss

    def _goes_on_after(self, error: SgcError) -> bool:
        """By eager Pyro where ``dynamic="eager"``; on the eager backend if Inductor fails in the tiered mode."""
        if isinstance(error, BackendError) and self._settings.tiered:
            self._inductor_works = False
            warn(f"this program stays on the eager backend: {error}", StandInWarning)
            for specialization in self.specializations:
                for with_gradient in (True, False):
                    specialization.use_backend(backend_of(TIERS[0]), with_gradient=with_gradient)
            return True
        if isinstance(error, (DataDependenceError, CaptureError)) and self._settings.dynamic == "eager":
            self._eager_only = self._is_initialized = True  # it shows no more than it does now
            warn(f"this program is run by eager Pyro, because it cannot be compiled: {error}", StandInWarning)
            return True
        return False

    def _eager(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Eager Pyro's loss, with the gradient of its surrogate."""
        self._pyro.option = EstimatorOption.of(self._options_now())
        loss = eager_loss(self._pyro, *self._program, args, kwargs)
        warn_if_nan(loss.detach(), "loss")
        return loss


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether a program cannot tell two callables apart. ``obj.method`` is a new object each time it is written."""
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return are_alike(one, other)
