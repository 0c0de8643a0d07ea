"""The torch optimizers behind a step, and whether they can be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim.dct_adam import DCTAdam
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from sgc.errors import ArgumentError
from sgc.native import conditions
from sgc.native.conditions import Condition

Clip = Callable[[Tensor], None]


@dataclass(frozen=True)
class Member:
    """One torch optimizer, and what clips the gradients of its parameters before it steps."""

    optimizer: Optimizer
    clip: Clip | None = None
    clip_options: Any = None


def optimizers_of(members: Sequence[Member]) -> list[Optimizer]:
    """Their optimizers, in order."""
    return [member.optimizer for member in members]


class Held:
    """Every object that some optimizers hold: groups, parameters, their state, hooks and a ``step`` of their own."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.conditions: list[Condition] = []
        for optimizer in optimizers:
            for name in ("param_groups", "state", *_HOOKS):
                value = getattr(optimizer, name)
                self.conditions += [conditions.is_same(conditions.attribute(optimizer, name), value), _holds(value)]
            own = conditions.entry(vars(optimizer), "step")
            wrapped = vars(optimizer).get("step")
            self.conditions.append(conditions.absent(own) if wrapped is None else conditions.is_same(own, wrapped))
            for group in optimizer.param_groups:
                parameters = group["params"]
                self.conditions += [
                    conditions.is_same(conditions.entry(group, "params"), parameters),
                    _holds(parameters),
                ]
            self.conditions += map(_holds, optimizer.state.values())
        self.conditions += map(_holds, _GLOBAL_HOOKS)
        self._watch = conditions.watch([(tuple(self.conditions), None)], native=False)

    def hold(self) -> bool:
        """Whether they hold the same objects, and each holder as many as it held."""
        return self._watch(None) is not None


_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_GLOBAL_HOOKS = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)


def _holds(container: Any) -> Condition:
    objects = [*container, *container.values()] if isinstance(container, dict) else container
    return conditions.holds(conditions.fixed(container), type(container), objects)


def has_hooks(members: Sequence[Member]) -> bool:
    """Whether something of the user runs with every step of an optimizer."""
    if torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks:
        return True
    return any(
        m.optimizer._optimizer_step_pre_hooks or m.optimizer._optimizer_step_post_hooks or _is_wrapped(m.optimizer)
        for m in members
    )


def _is_wrapped(optimizer: Optimizer) -> bool:
    """Whether ``step`` was replaced on the instance, by other than a scheduler, which only counts."""
    own = vars(optimizer).get("step")
    return own is not None and not hasattr(own, "_wrapped_by_lr_sched")


def unhooked_step(optimizer: Optimizer) -> Callable[..., Any]:
    """The ``step`` of its class without what torch wraps it in to run hooks and to record a profile."""
    step: Any = type(optimizer).step
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def refuse_subsampled(optimizers: Iterable[Optimizer]) -> None:
    """Refuse optimizers that step those rows of a parameter which a plate has drawn.

    Pyro notes these on the parameter each time a program runs in Python.

    :raises ArgumentError: if there are any.
    """
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if group.get("subsample_aware") and any(getattr(p, "_pyro_subsample", None) for p in group["params"]):
            raise ArgumentError(
                "an optimizer with subsample_aware=True asks which rows of a parameter were drawn, and a compiled "
                "program does not tell",
                remedy="leave subsample_aware out, or train by pyro.infer.SVI",
            )


class Following:
    """Lets the state of optimizers follow their parameters to another dtype or device (``loss_module.double()``)."""

    def __init__(self) -> None:
        self._places: dict[Tensor, tuple[torch.dtype, torch.device]] = {}

    def follow(self, optimizers: Iterable[Optimizer]) -> None:
        """Move the state of each optimizer whose parameters have moved since the last time, as torch loads it."""
        for optimizer in optimizers:
            places = {p: (p.dtype, p.device) for group in optimizer.param_groups for p in group["params"]}
            moved = any(self._places.get(parameter, place) != place for parameter, place in places.items())
            self._places |= places
            if moved:
                optimizer.load_state_dict(optimizer.state_dict())


def obstacle(members: Sequence[Member]) -> str | None:
    """Why these optimizers cannot be traced, or None.

    :raises sgc.errors.ArgumentError: if they cannot be stepped at all.
    """
    refuse_subsampled(optimizers_of(members))
    if has_hooks(members):
        return "the optimizer has hooks, or a step of its own"
    for member in members:
        kind = type(member.optimizer)
        if kind.__module__.partition(".")[0] not in ("torch", "pyro"):
            return f"{kind.__qualname__} is neither torch's nor Pyro's, so that its Python may do anything"
        if kind in (torch.optim.LBFGS, torch.optim.SparseAdam):
            return f"{kind.__qualname__} evaluates the loss itself or needs sparse gradients"
        parameters = [p for group in member.optimizer.param_groups for p in group["params"]]
        if kind is DCTAdam and any(hasattr(p, "_pyro_dct_dim") for p in parameters):
            return f"{kind.__qualname__} transforms a parameter"
    return None
