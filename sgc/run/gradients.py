"""Hands the gradients that a compiled call has computed to autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sgc.run.specialization import Compiled
from sgc.run.validity import Trial


class Loss(torch.autograd.Function):
    """One compiled call gives loss and gradients; ``backward`` only scales what was computed."""

    @staticmethod
    def forward(ctx: Any, compiled: Compiled, tensors: list[Tensor], trial: Trial | None, *wanted: Tensor) -> Tensor:
        loss, *gradients = compiled.run(*tensors)
        if trial is not None:
            trial.valid = gradients.pop()
        if compiled.separate is None:
            compiled.separate = _have_memory_of_their_own(gradients, tensors)
        ctx.separate = compiled.separate
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.separate and gradient.is_cpu and not torch.is_grad_enabled() and gradient.item() == 1.0:
            # Autograd makes them the parameters' own, or copies them if they are kept.
            return None, None, None, *ctx.saved_tensors
        return Loss.scaled(ctx, gradient)

    @staticmethod
    @once_differentiable
    def scaled(ctx: Any, gradient: Tensor) -> Any:
        """What was computed times the gradient of the loss; an error where that is to be differentiated."""
        kept = list(ctx.saved_tensors)
        if all(tensor.device == gradient.device for tensor in kept):
            return None, None, None, *torch._foreach_mul(kept, gradient)
        scaled = (tensor * gradient.to(tensor.device) for tensor in kept)  # parameters on several devices
        return None, None, None, *scaled


def _have_memory_of_their_own(results: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether none shares its storage with another or with an input, so that its owner may write into it."""
    storages = [tensor.untyped_storage().data_ptr() for tensor in results if tensor.numel()]
    return len({*storages}) == len(storages) and {*storages}.isdisjoint(
        tensor.untyped_storage().data_ptr() for tensor in inputs
    )
