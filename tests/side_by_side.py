"""One call by sgc and by Pyro, under one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor

import sgc

Result = tuple[Tensor, Tensor | None]
"""A loss, and its gradient in one parameter."""


def side_by_side(
    loss_module: sgc.LossModule,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    seed: int,
    parameter: str,
) -> tuple[Result, Result]:
    """What sgc gives for a call, and what Pyro's own TraceGraph_ELBO gives; no gradient is left.

    :param parameter: the name of the one whose gradient is compared.
    """

    def by_sgc() -> Tensor:
        loss: Tensor = loss_module(*args)
        loss.backward()
        return loss

    def by_pyro() -> Tensor:
        return torch.tensor(TraceGraph_ELBO().loss_and_grads(model, guide, *args))

    def result(call: Callable[[], Tensor]) -> Result:
        pyro.set_rng_seed(seed)
        loss = call().detach()
        unconstrained = pyro.param(parameter).unconstrained()  # type: ignore[union-attr]
        gradient, unconstrained.grad = unconstrained.grad, None
        return loss, gradient

    return result(by_sgc), result(by_pyro)
