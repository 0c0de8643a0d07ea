"""The optimizers that an ``SVI`` takes: torch's, as an instance or as what makes one, and Pyro's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from sgc.errors import ArgumentError
from sgc.run.loss import LossModule
from sgc.run.specialization import Specialization
from sgc.training.members import Member, same

Factory = Callable[[Iterable[Tensor]], Optimizer]


class Optimizing(ABC):
    """What a training step needs of an optimizer."""

    @abstractmethod
    def members(self, found: Specialization, parameters: list[Tensor]) -> list[Member]:
        """The torch optimizers to be stepped for this specialization, made where they are not there yet.

        :param parameters: those that receive a gradient.
        """

    @abstractmethod
    def step_eagerly(self, found: Specialization | None, loss: Callable[[], Tensor]) -> Tensor:
        """Take a step in Python. ``loss()`` gives the loss, and is differentiated here; if it is NaN, no step is taken.

        :param found: None for a program that eager Pyro runs.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer and of its schedulers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; parameters that have no optimizer yet take it when they get one."""


class TorchOptimizing(Optimizing):
    """A torch optimizer. One that is made by a factory gets every parameter, those that appear later too."""

    def __init__(self, optimizer: Optimizer | Factory, loss_module: Callable[[], LossModule]) -> None:
        self._given = optimizer
        self._loss_module = loss_module
        self._optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        self._waiting: dict[str, Any] | None = None
        self._known: dict[int, Tensor] = {}
        self._members: list[Member] = []

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, with every parameter that is known by now if a factory made it."""
        if isinstance(self._given, Optimizer):
            return self._given
        parameters = [p for p in self._loss_module().parameters() if p.requires_grad]
        fresh = [p for p in parameters if id(p) not in self._known]
        self._known |= {id(p): p for p in fresh}
        if self._optimizer is None:
            made = self._given(parameters)
            if not isinstance(made, Optimizer):
                raise ArgumentError(
                    f"the optimizer's factory returned a {type(made).__name__}",
                    remedy="return a torch.optim.Optimizer: lambda parameters: torch.optim.Adam(parameters, lr=1e-3)",
                )
            self._optimizer = made
            if self._waiting is not None:
                made.load_state_dict(self._waiting)
                self._waiting = None
            return made
        if fresh:
            self._optimizer.add_param_group({"params": fresh})
        return self._optimizer

    def members(self, found: Specialization, parameters: list[Tensor]) -> list[Member]:
        known = all(id(parameter) in self._known for parameter in parameters)
        optimizer = self._optimizer if known and self._optimizer is not None else self.optimizer
        if not self._members or self._members[0].optimizer is not optimizer:
            self._members = [Member(optimizer)]
        return self._members

    def step_eagerly(self, found: Specialization | None, loss: Callable[[], Tensor]) -> Tensor:
        if found is None and self._optimizer is None:
            raise ArgumentError(
                "a program that eager Pyro runs does not tell its parameters before it has run",
                remedy="pass a pyro.optim optimizer, or a torch optimizer that has its parameters",
            )
        optimizer = self._optimizer if found is None else self.optimizer
        assert optimizer is not None
        first: list[Tensor] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            first.append(value.detach())
            return value

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        elif not math.isnan(closure().detach()):
            optimizer.step()
        optimizer.zero_grad()
        return first[0]

    def state_dict(self) -> dict[str, Any]:
        if self._waiting is not None:
            return self._waiting
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._optimizer is None:
            self._waiting = state
        else:
            self._optimizer.load_state_dict(state)


class PyroOptimizing(Optimizing):
    """A ``pyro.optim`` optimizer: one torch optimizer for each parameter that Pyro's store holds."""

    def __init__(self, optimizer: PyroOptim) -> None:
        self._optimizer = optimizer
        self._owned: list[Tensor] = []
        self._objects: list[Any] = []
        self._members: list[Member] = []

    def members(self, found: Specialization, parameters: list[Tensor]) -> list[Member]:
        owned = _of_store(found)
        objects, clips = self._optimizer.optim_objs, self._optimizer.grad_clip
        if same(owned, self._owned) and same(list(objects.values()), self._objects):
            return self._members
        members = []
        for parameter in owned:
            if parameter not in objects:
                self._make(parameter)
            made = objects[parameter]
            options = self._optimizer._get_grad_clip_args(parameter)  # type: ignore[arg-type]
            members.append(Member(getattr(made, "optimizer", made), clips[parameter], options))
        self._owned, self._objects, self._members = owned, list(objects.values()), members
        return members

    def _make(self, parameter: Tensor) -> None:
        """Make the optimizer of a parameter. Pyro does so within a step only, which is too late to trace it."""
        optimizer = self._optimizer
        made = optimizer.optim_objs[parameter] = optimizer._get_optim(parameter)
        optimizer.grad_clip[parameter] = optimizer._get_grad_clip(parameter)  # type: ignore[arg-type]
        name = pyro.get_param_store().param_name(parameter)
        state = optimizer._state_waiting_to_be_consumed.pop(name, None)
        if state is not None:
            pyro.optim.optim._load_state_dict(made, state)

    def step_eagerly(self, found: Specialization | None, loss: Callable[[], Tensor]) -> Tensor:
        if found is None:
            with poutine.trace(param_only=True) as seen:
                value = loss()
            parameters = [site["value"].unconstrained() for site in seen.trace.nodes.values()]  # type: ignore[union-attr]
        else:
            parameters = _of_store(found)
            for parameter in parameters:
                parameter.grad = None
            value = loss()
        value.backward()
        if not math.isnan(value.detach()):
            self._optimizer(parameters)
        for parameter in parameters:
            parameter.grad = None
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizer.get_state()
        return {**self._optimizer._state_waiting_to_be_consumed, **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        store = pyro.get_param_store()
        self._optimizer.set_state(dict(state))
        for parameter in list(self._optimizer.optim_objs):
            if store.param_name(parameter) in state:
                del self._optimizer.optim_objs[parameter]  # it is made anew, with the state


def _of_store(found: Specialization) -> list[Tensor]:
    store = pyro.get_param_store()._params
    return [store[name] for name in found.params if name in store]


def optimizing(optimizer: Any, loss_module: Callable[[], LossModule]) -> Optimizing:
    """What steps this optimizer.

    :raises ValueError: if it is of no kind that is known, as Pyro's ``SVI`` does.
    """
    if isinstance(optimizer, PyroOptim):
        return PyroOptimizing(optimizer)
    if isinstance(optimizer, Optimizer) or callable(optimizer):
        return TorchOptimizing(optimizer, loss_module)
    raise ValueError(
        "Optimizer should be an instance of pyro.optim.PyroOptim class, a torch.optim.Optimizer, or a callable that "
        f"makes one from the parameters, not a {type(optimizer).__name__}"
    )
