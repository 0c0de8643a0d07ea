"""Why a training step cannot be one compiled call: what is done with gradients besides the optimizers' updates."""

from __future__ import annotations

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from sgc.graph.aliasing import overlap
from sgc.runtime.compiler import differentiate_loss
from sgc.runtime.specialization import Specialization
from sgc.training.optimizers.members import Member

HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Attributes of a parameter that hold what a user runs with its gradient."""

UNTRACEABLE = (RuntimeError, TypeError, ValueError, NotImplementedError, GuardOnDataDependentSymNode)
"""What an optimizer raises whose update cannot be traced."""


def hindrance(specialization: Specialization, parameters: list[Tensor]) -> str | None:
    """Why a step of this specialization cannot be one compiled call."""
    if not parameters:
        return "no parameter receives a gradient"
    if any(getattr(parameter, name) for parameter in parameters for name in HOOKS):
        return "a parameter has hooks on its gradient"
    return None


def unheld(specialization: Specialization, tensors: list[Tensor], members: list[Member]) -> str | None:
    """Why a gradient would be lost, or split, in a step that returns none."""
    held = {id(p) for member in members for group in member.optimizer.param_groups for p in group["params"]}
    seen: list[tuple[str, Tensor]] = []
    for position in differentiate_loss(specialization, tensors).gradient_of:
        name, tensor = specialization.inputs[position].name, tensors[position]
        if id(tensor) not in held:
            return (
                f"{name} receives a gradient and no optimizer has it; where that is not meant, register its module "
                "with pyro.module, give it to the optimizer, detach() it, or freeze it with requires_grad_(False)"
            )
        for other, known in seen:
            if overlap(tensor, known):
                return f"{name} and {other} share memory"
        seen.append((name, tensor))
    return None


def reason_of(error: BaseException) -> str:
    """Why an update cannot be traced, in a line."""
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its Python branches on numbers that change from step to step"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
