"""Eager Pyro's loss, with the gradient of its surrogate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from sgc.tracing.error_notes import located
from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX, lent_averages, present_averages


def eager_loss(
    elbo: PyroLoss,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Minus the ELBO, a 0-d tensor, as Pyro computes it now; its gradient is that of Pyro's surrogate.

    Without gradients the averages of baselines stay as they are, as in Pyro's ``loss``.
    """
    with_gradient = torch.is_grad_enabled()
    averages = nullcontext() if with_gradient else lent_averages(present_averages())
    with located(), poutine.block(hide_fn=_is_average), averages:
        value, surrogate = elbo.combined(elbo._get_traces(model, guide, args, kwargs))
    loss = -torch.as_tensor(value).detach()
    if isinstance(surrogate, Tensor) and surrogate.requires_grad:
        result: Tensor = _Value.apply(surrogate, loss)
        return result
    return loss


def _is_average(message: Any) -> bool:
    return message["type"] == "param" and message["name"].startswith(BASELINE_PREFIX)


class _Value(torch.autograd.Function):
    """The gradient of one scalar, the value of another (a difference of the two would be NaN where one is infinite)."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None
