"""Losses that ``SVI`` does not compile: their steps are Pyro's, and one warning says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from sgc.errors import ArgumentError, NanLossError, StandInWarning
from sgc.guards.base import Call
from sgc.infer.compiled_loss import CompiledLoss
from sgc.infer.own_loss import compiled_class
from sgc.runtime.validity import Trial
from sgc.tracing.source import warn
from sgc.training.bound_step import Step

_OF_A_STEP = ("loss_and_grads", "differentiable_loss")


def compiled_elbo(loss: ELBO | Callable[..., Any]) -> CompiledLoss | None:
    """The loss, if it is an ELBO whose whole step can be compiled; else None, after a warning that says what runs.

    :raises sgc.errors.ArgumentError: if it is neither an ELBO nor a function.
    """
    if isinstance(loss, type) or not (isinstance(loss, ELBO) or callable(loss)):
        is_class = isinstance(loss, type) and issubclass(loss, ELBO)
        raise ArgumentError(
            "the loss of an SVI is an ELBO or a function of (model, guide, *args, **kwargs), not "
            + (f"the class {loss.__qualname__}" if isinstance(loss, type) else repr(loss)),
            remedy=f"make one: {loss.__name__}()" if is_class else "pass sgc.infer.TraceGraph_ELBO()",
        )
    if not isinstance(loss, CompiledLoss):
        warn(
            f"the loss of this SVI is {shown(loss)}, which sgc does not compile: each step runs as in pyro.infer.SVI. "
            f"To have it compiled, pass a {compiled_class(loss)}",
            StandInWarning,
        )
        return None
    own = [
        name
        for name in _OF_A_STEP
        if name in vars(loss) or getattr(type(loss), name) is not getattr(CompiledLoss, name)
    ]
    if own:
        warn(
            f"{shown(loss)} has its own {' and '.join(own)}, which sgc does not compile: each step calls it, and runs "
            "the optimizer in Python, as in pyro.infer.SVI",
            StandInWarning,
        )
        return None
    return loss


def shown(loss: ELBO | Callable[..., Any]) -> str:
    """The class of an ELBO, or the name of a function."""
    kind: Any = type(loss) if isinstance(loss, ELBO) or not hasattr(loss, "__qualname__") else loss
    return f"{kind.__module__}.{kind.__qualname__}"


class PyroSteps:
    """Pyro's own steps, for a loss that is not one of sgc's."""

    def __init__(self, step: Callable[..., float]) -> None:
        self._step = step

    def turn(self) -> AbstractContextManager[None]:
        """Pyro's steps take no turns."""
        return nullcontext()

    def ready(self, call: Call) -> None:
        return None

    def eagerly(self, call: Call) -> Tensor:
        return torch.tensor(self._step(*call.args, **call.kwargs))

    def judged(self, step: Step, trial: Trial | None, failure: Exception | None = None) -> None:
        return None

    def nan_error(self, step: str, call: Call) -> NanLossError:
        return NanLossError(
            f"the loss of {step} is NaN; Pyro's SVI, which steps this loss, has taken that step",
            remedy="look at the parameters, which may be NaN now; a compiled loss leaves them as they were",
        )

    def data_size(self) -> None:
        return None

    def runs_uncompiled(self) -> bool:
        return False
