"""Copies of optimizers that hold traced tensors: their steps are recorded, and the optimizers stay as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sgc.training.optimizers.hyperparameters import is_number
from sgc.training.optimizers.members import Clip, Member, unhooked_step
from sgc.training.optimizers.numbers_as_tensors import numbers_as_tensors


class Uninitialised(Exception):
    """An optimizer would make its state in this step, which it must do in Python."""


class OwnSchedule(Exception):
    """Optimizers change these hyperparameters themselves, in every step."""

    def __init__(self, keys: set[str]) -> None:
        super().__init__(f"the optimizer changes its own {', '.join(sorted(keys))}")
        self._keys = keys

    def keep_as_tensors(self, members: Sequence[Member]) -> None:
        """Let 0-d float64 tensors take the place of the numbers, which a compiled step can then change."""
        for member in members:
            for group in member.optimizer.param_groups:
                for key in self._keys & group.keys():
                    if is_number(group[key]):
                        device = group["params"][0].device
                        group[key] = torch.tensor(float(group[key]), dtype=torch.float64, device=device)


def own_schedules(members: Sequence[Member]) -> set[str]:
    """The numbers among hyperparameters that optimizers change in each step, whatever the gradients.

    Asked of copies without parameters, so that no step is traced in vain. One that takes no step without parameters, or
    looks at them for its schedule, raises :class:`OwnSchedule` where it is traced.
    """
    keys: set[str] = set()
    for optimizer in (member.optimizer for member in members):
        if type(optimizer).__module__.startswith("torch."):
            continue  # torch leaves schedules to schedulers
        copied = object.__new__(type(optimizer))
        copied.__dict__.update(optimizer.__dict__)
        copied.state = defaultdict(dict)
        numbers = [
            {key: value for key, value in group.items() if not isinstance(value, Tensor)}
            for group in optimizer.param_groups
        ]
        copied.param_groups = [{**group, "params": []} for group in numbers]
        try:
            unhooked_step(optimizer)(copied)
        except Exception:  # whatever it says of what is left out
            continue
        for group, stepped in zip(numbers, copied.param_groups, strict=True):
            keys |= {key for key, value in group.items() if is_number(value) and stepped.get(key) is not value}
    return keys


@dataclass(frozen=True)
class Slot:
    """A tensor that an optimizer keeps, and the dictionary that holds it: a group of parameters, or one's state."""

    holder: dict[Any, Any]
    key: Any
    tensor: Tensor


class Shadows:
    """Copies of optimizers, with copies of their groups and states, for one step.

    :param members: the optimizers.
    :param originals: the parameters that receive gradients.
    :param parameters: the traced tensors that take their places.
    :param gradients: those of these.
    :param capturable: whether step counts stay tensors throughout, where an optimizer has that option.
    """

    def __init__(
        self,
        members: Sequence[Member],
        originals: Sequence[Tensor],
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        *,
        capturable: bool,
    ) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()  # clipping writes into it
        self._members = members
        self._traced = {id(original): traced for original, traced in zip(originals, parameters, strict=True)}
        self._capturable = capturable
        self._holders: dict[int, dict[Any, Any]] = {}  # of the copies, by those that they are copied from
        self._optimizers = [self._copied(member.optimizer) for member in members]
        self._placed: list[tuple[dict[Any, Any], Any, Tensor]] = []
        self._before: dict[tuple[int, Any], tuple[dict[Any, Any], Any, Any]] = {}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of parameters of all copies."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def place(self, slots: Sequence[Slot], tensors: Sequence[Tensor]) -> None:
        """Put traced tensors where the copies look for those of these slots."""
        for slot, tensor in zip(slots, tensors, strict=True):
            holder = self._holders[id(slot.holder)]
            # In float64 a step count gives the bias corrections that Python would compute.
            holder[slot.key] = tensor.double() if self._capturable and slot.key == "step" else tensor
            self._placed.append((holder, slot.key, tensor))

    def step(self, nonzero: Callable[[], dict[int, bool]]) -> None:
        """Step each, after its clipping.

        :param nonzero: asked before each step; which traced hyperparameters are known not to be 0.
        """
        self._before = self._entries()
        for member, optimizer in zip(self._members, self._optimizers, strict=True):
            _clip_and_step(member.clip, optimizer, self._capturable, nonzero())

    def refuse_new_entries(self) -> None:
        """Refuse what the steps have put where no traced tensor stands.

        :raises OwnSchedule: if that is a hyperparameter.
        :raises Uninitialised: if it is new state.
        """
        placed = {(id(holder), key) for holder, key, _ in self._placed}
        groups = {id(group) for group in self.groups}
        for place, (holder, key, value) in self._entries().items():
            is_as_before = place in self._before and self._before[place][2] is value
            if place not in placed and not is_as_before:
                raise OwnSchedule({key}) if id(holder) in groups else Uninitialised

    def write_back(self) -> None:
        """Write into the traced tensors what the steps have put in their places."""
        for holder, key, tensor in self._placed:
            if holder[key] is not tensor:
                tensor.copy_(holder[key])

    def _copied(self, optimizer: Optimizer) -> Optimizer:
        copied: Optimizer = object.__new__(type(optimizer))
        copied.__dict__.update(optimizer.__dict__)
        copied.state = defaultdict(dict)
        copied.param_groups = []
        for group in optimizer.param_groups:
            parameters = []
            for parameter in group["params"]:
                traced = self._traced.get(id(parameter))
                parameters.append(parameter.detach() if traced is None else traced)
                if traced is not None and parameter in optimizer.state:
                    state = copied.state[traced] = dict(optimizer.state[parameter])
                    self._holders[id(optimizer.state[parameter])] = state
            own = {**group, "params": parameters}
            own |= {key: value for key, value in {"foreach": False, "fused": None}.items() if key in group}
            if self._capturable and "capturable" in group:
                own["capturable"] = True
            copied.param_groups.append(own)
            self._holders[id(group)] = own
        return copied

    def _entries(self) -> dict[tuple[int, Any], tuple[dict[Any, Any], Any, Any]]:
        """Everything that the copies hold, by dictionary and key."""
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        holders = [*self.groups, *states]
        return {(id(holder), key): (holder, key, value) for holder in holders for key, value in holder.items()}


def _clip_and_step(clip: Clip | None, optimizer: Optimizer, capturable: bool, nonzero: dict[int, bool]) -> None:
    if clip is not None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    clip(parameter)
    step = unhooked_step(optimizer)
    with numbers_as_tensors(_innermost(step), capturable=capturable, nonzero=nonzero):
        step(optimizer)


def _innermost(step: Callable[..., Any]) -> Callable[..., Any]:
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step
