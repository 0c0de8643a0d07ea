"""An optimizer as a function: bound to the tensors that it reads and writes, so that its step can be traced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sgc.guards.identity import same
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.training.optimizers.hyperparameters import Hyperparameters, indices, is_number, without_numbers
from sgc.training.optimizers.members import Clip, Held, Member, optimizers_of, unhooked_step
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


@dataclass(frozen=True)
class _Slot:
    """A tensor that an optimizer keeps, and the dictionary that holds it."""

    holder: dict[Any, Any]
    key: Any
    tensor: Tensor


class Update:
    """Optimizers bound to the parameters that receive gradients, by identity.

    :attr:`signature` says everything that a traced update depends on besides the values of tensors: two updates of
    equal signature may share one compiled step.

    :param members: the optimizers, each stepped once, in order.
    :param parameters: those that have a gradient.
    :param moving: the names of hyperparameters that change from step to step.
    """

    def __init__(self, members: Sequence[Member], parameters: Sequence[Tensor], moving: frozenset[str]) -> None:
        self._members = members
        self._parameters = tuple(parameters)
        self._positions = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._groups = [group for member in members for group in member.optimizer.param_groups]
        self._moving = moving
        device = parameters[0].device if parameters else torch.device("cpu")
        self.hyperparameters = Hyperparameters(self._groups, moving, device)
        self._slots: list[_Slot] = []
        self.signature = tuple(self._describe(member) for member in self._members)
        self.signature += (self.hyperparameters.sharing,)
        self._expected = [self._fixed(group) for group in self._groups]
        self._options = [dict(group) for group in self._groups]
        self._held = Held(optimizers_of(members))

    @property
    def state(self) -> list[Tensor]:
        """What the update reads and writes besides the parameters: the optimizers' state, the hyperparameters."""
        return [*(slot.tensor for slot in self._slots), *self.hyperparameters.tensors]

    def holds(self, members: Sequence[Member], parameters: Sequence[Tensor]) -> bool:
        """Whether it still binds these optimizers and parameters as they are now; hyperparameters are refreshed.

        This runs at every step: objects are compared by identity, all of them at once.
        """
        if not same(parameters, self._parameters):
            return False
        if members is not self._members and not same(optimizers_of(members), optimizers_of(self._members)):
            return False
        if not self._held.hold():
            return False
        if self._groups == self._options:
            return True
        # A number has changed: the learning rate, most often.
        if [self._fixed(group) for group in self._groups] != self._expected or not self.hyperparameters.refresh():
            return False
        self._options[:] = [dict(group) for group in self._groups]
        return True

    def conditions(self) -> list[Condition]:
        """What is enough for :meth:`holds`, of the same parameters and optimizers."""
        return [*self._held.conditions, conditions.equals(conditions.fixed(self._groups), self._options)]

    @property
    def has_capturable(self) -> bool:
        """Whether an optimizer has the option to keep its step count in a tensor throughout."""
        return any("capturable" in group for group in self._groups)

    def moved(self) -> frozenset[str]:
        """The hyperparameters that are other numbers now than they were when :meth:`holds` last held."""
        return frozenset(
            key
            for group, before in zip(self._groups, self._options, strict=True)
            for key, value in before.items()
            if any(True for _ in indices(value)) and group.get(key) != value
        )

    def __call__(
        self, parameters: list[Tensor], gradients: list[Tensor], state: list[Tensor], *, capturable: bool = False
    ) -> None:
        """Step shadows of the optimizers, which hold the given tensors, and write into those what they changed.

        :raises Uninitialised: if an optimizer makes new state.
        :raises OwnSchedule: if an optimizer changes its hyperparameters.
        """
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()  # clipping writes into it
        kept, numbers = state[: len(self._slots)], state[len(self._slots) :]
        shadows = [self._shadow(member.optimizer, parameters, capturable) for member in self._members]
        groups = [group for shadow in shadows for group in shadow.param_groups]
        self.hyperparameters.put(groups, numbers)
        placed = self._place(kept, shadows, parameters, capturable)
        versions = [number._version for number in numbers]
        entries = _entries(shadows)
        for member, shadow in zip(self._members, shadows, strict=True):
            _clip_and_step(member.clip, shadow, capturable, self.hyperparameters.nonzero(numbers))
        own = {(id(holder), key) for holder, key, _ in placed}
        for identity, (holder, key, value) in _entries(shadows).items():
            if identity in own or (identity in entries and entries[identity][2] is value):
                continue
            raise OwnSchedule({key}) if any(holder is group for group in groups) else Uninitialised
        if [number._version for number in numbers] != versions:
            raise OwnSchedule(set(self._moving))
        for holder, key, tensor in placed:
            if holder[key] is not tensor:
                tensor.copy_(holder[key])

    # -- binding

    def _describe(self, member: Member) -> Any:
        """What the tracing of one optimizer depends on; collects the tensors that it keeps."""
        optimizer = member.optimizer
        described: list[Any] = [type(optimizer), member.clip_options]
        for group in optimizer.param_groups:
            options = [
                (key, self._option(group, key, value)) for key, value in group.items() if key not in ("params", "fused")
            ]
            described.append(options)
            for parameter in group["params"]:
                position = self._positions.get(id(parameter))
                described.append(position)
                if position is not None:
                    described.append(self._keep(optimizer, parameter))
        return described

    def _option(self, group: dict[str, Any], key: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._slots.append(_Slot(group, key, value))
            return _meta(value)
        return without_numbers(key, value) if key in self._moving else value

    def _keep(self, optimizer: Optimizer, parameter: Tensor) -> Any:
        """Bind the state of one parameter; numbers in it become tensors, so that the compiled step can change them."""
        holder: dict[Any, Any] | None = optimizer.state.get(parameter)
        described: list[Any] = []
        if holder is None:
            return described
        for key, value in list(holder.items()):
            if is_number(value):
                value = holder[key] = torch.tensor(float(value), dtype=torch.float64, device=parameter.device)
            if isinstance(value, Tensor):
                if value.dim() == 0 and value.device != parameter.device:
                    value = holder[key] = value.to(parameter.device)
                self._slots.append(_Slot(holder, key, value))
                described.append((key, _meta(value)))
            else:
                described.append((key, value))
        return described

    def _fixed(self, group: dict[str, Any]) -> list[Any]:
        """The options of a group whose change makes another step of it: all but the numbers that may move."""
        return [
            id(value) if isinstance(value, Tensor) else without_numbers(key, value) if key in self._moving else value
            for key, value in group.items()
            if key != "params"
        ]

    # -- tracing

    def _shadow(self, optimizer: Optimizer, parameters: list[Tensor], capturable: bool) -> Optimizer:
        """A copy of the optimizer that holds the traced parameters, with a copy of its state."""
        shadow: Optimizer = object.__new__(type(optimizer))
        shadow.__dict__.update(optimizer.__dict__)
        shadow.state = defaultdict(dict)
        shadow.param_groups = []
        for group in optimizer.param_groups:
            stand_ins = []
            for parameter in group["params"]:
                position = self._positions.get(id(parameter))
                stand_ins.append(parameter.detach() if position is None else parameters[position])
                if position is not None and parameter in optimizer.state:
                    shadow.state[stand_ins[-1]] = dict(optimizer.state[parameter])
            copied = {**group, "params": stand_ins}
            copied |= {key: value for key, value in {"foreach": False, "fused": None}.items() if key in group}
            if capturable and "capturable" in group:
                copied["capturable"] = True
            shadow.param_groups.append(copied)
        return shadow

    def _place(
        self, kept: list[Tensor], shadows: list[Optimizer], parameters: list[Tensor], capturable: bool
    ) -> list[tuple[dict[Any, Any], Any, Tensor]]:
        """Put the traced tensors where the shadows look for them; the dictionary, key and tensor of each."""
        shadowed: dict[int, dict[Any, Any]] = {}
        for member, shadow in zip(self._members, shadows, strict=True):
            for group, copied in zip(member.optimizer.param_groups, shadow.param_groups, strict=True):
                shadowed[id(group)] = copied
            for original, traced in zip(self._parameters, parameters, strict=True):
                if original in member.optimizer.state:
                    shadowed[id(member.optimizer.state[original])] = shadow.state[traced]
        placed = []
        for slot, tensor in zip(self._slots, kept, strict=True):
            holder = shadowed[id(slot.holder)]
            # In float64 a step count gives the bias corrections that Python would compute.
            holder[slot.key] = tensor.double() if capturable and slot.key == "step" else tensor
            placed.append((holder, slot.key, tensor))
        return placed


def _entries(optimizers: list[Optimizer]) -> dict[tuple[int, Any], tuple[dict[Any, Any], Any, Any]]:
    """Everything that optimizers hold, by dictionary and key."""
    holders = [holder for optimizer in optimizers for holder in (*optimizer.param_groups, *optimizer.state.values())]
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


def _meta(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


def _innermost(step: Callable[..., Any]) -> Callable[..., Any]:
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step
