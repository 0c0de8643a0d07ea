"""An optimizer as a function: bound to the tensors that it reads and writes, so that its step can be traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sgc.guards.identity import same
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.training.optimizers.hyperparameters import Hyperparameters, indices, is_number, without_numbers
from sgc.training.optimizers.members import Held, Member, optimizers_of
from sgc.training.optimizers.shadows import OwnSchedule, Shadows, Slot


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
        self._slots: list[Slot] = []
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
        values, numbers = state[: len(self._slots)], state[len(self._slots) :]
        shadows = Shadows(self._members, self._parameters, parameters, gradients, capturable=capturable)
        self.hyperparameters.put(shadows.groups, numbers)
        shadows.place(self._slots, values)
        versions = [number._version for number in numbers]
        shadows.step(lambda: self.hyperparameters.nonzero(numbers))
        shadows.refuse_new_entries()
        if [number._version for number in numbers] != versions:
            raise OwnSchedule(set(self._moving))
        shadows.write_back()

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
            self._slots.append(Slot(group, key, value))
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
                self._slots.append(Slot(holder, key, value))
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


def _meta(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()
