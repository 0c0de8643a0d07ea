"""What computes loss and gradients in one call, and hands the gradients to autograd."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sgc.graph.aliasing import have_own_storage

if TYPE_CHECKING:  # a loss that comes from a file needs none of these
    from sgc.emit.inductor.compile_graph import Runner
    from sgc.runtime.inspection.program_text import Rewritten


class Change(Protocol):
    """How a program changes over to what another process has compiled."""

    def is_due(self) -> bool:
        """Whether the other process is done; asked at each call."""
        ...

    def made(self, before: Compiled, tensors: list[Tensor]) -> Compiled:
        """What takes the place of what has run until now, for inputs like these."""
        ...


@dataclass
class Compiled:
    """A runnable, for which of its inputs it returns gradients, and how its module was rewritten.

    If the specialization validates, its last result says whether the call was valid; if not, it has written nothing.
    ``calls`` counts those of the loss module, not what :meth:`LossModule.verify` runs.
    ``separate`` says whether each gradient has memory of its own, once it has run. ``owned`` are those of
    ``gradient_of`` that calls do not bring; ``trained`` are the identities of the tensors that they were in the latest
    call, and ``references`` weak ones to these. ``change`` is there while the runnable is a graph run operator by
    operator, which another process compiles.
    """

    run: Runner
    gradient_of: tuple[int, ...]
    rewritten: Rewritten
    calls: int = 0
    separate: bool | None = None
    owned: tuple[int, ...] = ()
    trained: list[int] = field(default_factory=list)
    references: list[weakref.ref[Tensor]] = field(default_factory=list)
    change: Change | None = None

    def __str__(self) -> str:
        gradients, calls = _counted(len(self.gradient_of), "gradient"), _counted(self.calls, "time")
        return f"a callable that gives the loss and {gradients}, called {calls}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


class Runnable(Protocol):
    """What gives a loss and gradients, as a :class:`Compiled` does."""

    run: Runner
    separate: bool | None


class Judged(Protocol):
    """A call that is checked; whether it was valid is known after it."""

    valid: Tensor | bool | None


class Loss(torch.autograd.Function):
    """One compiled call gives loss and gradients; ``backward`` only scales what was computed."""

    @staticmethod
    def forward(ctx: Any, compiled: Runnable, tensors: list[Tensor], trial: Judged | None, *wanted: Tensor) -> Tensor:
        loss, *gradients = compiled.run(*tensors)
        if trial is not None:
            trial.valid = gradients.pop()
        if compiled.separate is None:
            compiled.separate = have_own_storage(gradients, tensors)
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
