"""Why a training step cannot be one compiled call: what is done with gradients besides the optimizers' updates."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from sgc.graph.aliasing import shared
from sgc.runtime.specializing.compiler import differentiate_loss
from sgc.runtime.specializing.specialization import Specialization
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
    trained = differentiate_loss(specialization, tensors).gradient_of
    for position in trained:
        if id(tensors[position]) not in held:
            return (
                f"{specialization.inputs[position].name} receives a gradient and no optimizer has it; where that is "
                "not meant, register its module with pyro.module, give it to the optimizer, detach() it, or freeze it "
                "with requires_grad_(False)"
            )
    return memory_shared(specialization, tensors, [], trained)


def memory_shared(
    specialization: Specialization, tensors: list[Tensor], own: list[Tensor], written: Collection[int]
) -> str | None:
    """Which inputs of a step lie in memory that is written by another one, in words; None if none do.

    Eager Pyro reads all of them before the optimizer writes; a compiled step may write into one of its inputs while it
    still reads others.

    :param own: the inputs behind the tensors: what the optimizer keeps.
    :param written: the positions of those that are written.
    """
    names = [declared.name for declared in specialization.inputs]
    used = specialization.capture.program.used
    counting = [t if i >= len(names) or names[i] in used else None for i, t in enumerate([*tensors, *own])]
    names += ["an average"] * (len(tensors) - len(names)) + ["what the optimizer keeps"] * len(own)
    return next((f"{names[i]} and {names[j]} share memory" for i, j in shared(counting, written)), None)


def reason_of(error: BaseException) -> str:
    """Why an update cannot be traced, in a line."""
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its Python branches on numbers that change from step to step"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
