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
from sgc.guards.identity import same
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.runtime.loss_module import LossModule
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.state.param_store import current_store
from sgc.training.optimizers.line_search import NanInSearch, search
from sgc.training.optimizers.members import Following, Member, optimizers_of, refuse_subsampled
from sgc.training.optimizers.refused import refuse_made, refuse_module_local, refuse_wrong_kind
from sgc.training.optimizers.saved_state import check_entries, check_kind, check_names, check_state, not_taken

Factory = Callable[[Iterable[Tensor]], Optimizer]


class Optimizing(ABC):
    """What a training step needs of an optimizer."""

    takes_new: bool = True
    """Whether parameters that appear later, or take the place of others, are trained too."""

    retain_graph: bool | None = None
    """As of Pyro's ELBO: whether what arguments were computed with is kept for another ``backward``."""

    @abstractmethod
    def members(self, specialization: Specialization, parameters: list[Tensor]) -> list[Member]:
        """The torch optimizers to be stepped for this specialization, made where they are not there yet.

        :param parameters: those that receive a gradient.
        """

    @abstractmethod
    def conditions(self, specialization: Specialization) -> list[Condition]:
        """Where these are true, :meth:`members` gives for the same parameters what it gave last."""

    @abstractmethod
    def step_eagerly(self, specialization: Specialization | None, loss: Callable[[], Tensor]) -> Tensor:
        """Take a step in Python. ``loss()`` gives the loss, and is differentiated here; if it is NaN, no step is taken.

        :param specialization: None for a program that eager Pyro runs.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer and of its schedulers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        :raises sgc.errors.SgcError: if it is of another class, of other parameters, or not complete; nothing has
            changed then.
        """


class TorchOptimizing(Optimizing):
    """A torch optimizer. One that is made by a factory gets every parameter, those that appear later too."""

    def __init__(self, optimizer: Optimizer | Factory, loss_module: Callable[[], LossModule]) -> None:
        self._given = optimizer
        self._loss_module = loss_module
        self._optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        self.takes_new = self._optimizer is None
        self._known: dict[int, Tensor] = {}
        self._members: list[Member] = []
        self._trained: list[Tensor] = []
        self._following = Following()

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, with every parameter that is known by now if a factory made it."""
        if isinstance(self._given, Optimizer):
            return self._given
        shown = list(self._loss_module().parameters())
        parameters = [p for p in shown if p.requires_grad]
        fresh = [p for p in parameters if id(p) not in self._known]
        if fresh and self._optimizer is not None:
            self._forget_all_but(shown)
        if self._optimizer is None or (fresh and isinstance(self._optimizer, torch.optim.LBFGS)):
            # What L-BFGS remembers is of the space of its parameters: with more of them it begins anew.
            made = self._given(parameters)
            if not isinstance(made, Optimizer):
                raise refuse_made(made)
            self._optimizer = made
        elif fresh and len(self._optimizer.param_groups) == 1:
            # As if it had been made with them: a checkpoint is loaded into one group again.
            self._optimizer.param_groups[0]["params"] += fresh
        elif fresh:
            self._optimizer.add_param_group({"params": fresh})
        self._known |= {id(p): p for p in fresh}
        return self._optimizer

    def _forget_all_but(self, shown: Iterable[Tensor]) -> None:
        """Let go of parameters that others have taken the place of: Pyro's store was cleared or loaded."""
        assert self._optimizer is not None
        gone = self._known.keys() - {id(parameter) for parameter in shown}
        for group in self._optimizer.param_groups:
            group["params"][:] = [p for p in group["params"] if id(p) not in gone]
        for identity in gone:
            self._optimizer.state.pop(self._known.pop(identity), None)

    def members(self, specialization: Specialization, parameters: list[Tensor]) -> list[Member]:
        optimizer = self._optimizer
        if optimizer is None or not same(parameters, self._trained):
            known = all(id(parameter) in self._known for parameter in parameters)
            optimizer = self._optimizer if known and self._optimizer is not None else self.optimizer
            self._trained = parameters
        self._following.follow([optimizer])
        if not self._members or self._members[0].optimizer is not optimizer:
            self._members = [Member(optimizer)]
        return self._members

    def conditions(self, specialization: Specialization) -> list[Condition]:
        return [conditions.is_same(conditions.entry(vars(self), "_optimizer"), self._optimizer)]

    def step_eagerly(self, specialization: Specialization | None, loss: Callable[[], Tensor]) -> Tensor:
        if specialization is None and self._optimizer is None:
            raise ArgumentError(
                "a program that eager Pyro runs does not tell its parameters before it has run",
                remedy="pass a pyro.optim optimizer, or a torch optimizer that has its parameters",
            )
        optimizer = self._optimizer if specialization is None else self.optimizer
        assert optimizer is not None
        if specialization is not None:
            refuse_subsampled([optimizer])
        self._following.follow([optimizer])
        losses: list[Tensor] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = _differentiated(loss, self.retain_graph)
            losses.append(value.detach())
            if isinstance(optimizer, torch.optim.LBFGS) and math.isnan(losses[-1]):
                raise NanInSearch
            return value

        if isinstance(optimizer, torch.optim.LBFGS):
            search(optimizer, closure)
        elif not math.isnan(closure().detach()):
            self.optimizer.step()  # another branch of the program may have had other parameters
        optimizer.zero_grad()
        return losses[-1] if math.isnan(losses[-1]) else losses[0]

    def state_dict(self) -> dict[str, Any]:
        optimizer = self.optimizer
        return {"kind": self._kind(optimizer), "names": self._names(optimizer), **optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizer = self.optimizer
        check_entries(state, ("kind",), "the optimizer")
        check_kind(state["kind"], self._kind(optimizer))
        check_entries(state, ("names", "state", "param_groups"), "the optimizer")
        names, saved = self._names(optimizer), state["names"]
        check_names(saved, names)
        # torch tells parameters apart by their position, which depends on the order of the captures.
        place = {name: i for i, name in enumerate(name for group in saved for name in group)}
        groups = [
            {**options, "params": [place[name] for name in group]}
            for options, group in zip(state["param_groups"], names, strict=True)
        ]
        for options, own_names, own in zip(groups, names, optimizer.param_groups, strict=True):
            for name, parameter in zip(own_names, own["params"], strict=True):
                if place[name] in state["state"]:
                    check_state(optimizer, name, parameter, options, state["state"][place[name]])
        kept = optimizer.state, optimizer.param_groups
        order = [list(group["params"]) for group in kept[1]]
        try:
            if isinstance(optimizer, torch.optim.LBFGS):
                # What it remembers is of all parameters at once, in the order in which it had them.
                places = dict(zip(order[0], groups[0]["params"], strict=True))
                optimizer.param_groups[0]["params"].sort(key=places.__getitem__)
                groups[0]["params"].sort()
            optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        except Exception as error:
            optimizer.state, optimizer.param_groups = kept
            for group, parameters in zip(optimizer.param_groups, order, strict=True):
                group["params"][:] = parameters
            raise not_taken(state["kind"], error) from error

    @staticmethod
    def _kind(optimizer: Optimizer) -> str:
        return f"torch's {type(optimizer).__qualname__}"

    def _names(self, optimizer: Optimizer) -> list[list[str]]:
        """The names of each group's parameters in the loss module; the position of one that it does not show."""
        names = {id(p): name for name, p in self._loss_module().named_parameters()}
        count = iter(range(len(names) + sum(len(group["params"]) for group in optimizer.param_groups)))
        return [[names.get(id(p), f"#{next(count)}") for p in group["params"]] for group in optimizer.param_groups]


class PyroOptimizing(Optimizing):
    """A ``pyro.optim`` optimizer: one torch optimizer for each parameter that Pyro's store holds."""

    def __init__(self, optimizer: PyroOptim) -> None:
        self._optimizer = optimizer
        self._owned: list[Tensor] = []
        self._following = Following()
        self._objects: list[Any] = []
        self._members: list[Member] = []

    def members(self, specialization: Specialization, parameters: list[Tensor]) -> list[Member]:
        owned = _of_store(specialization)
        objects, clips = self._optimizer.optim_objs, self._optimizer.grad_clip
        if same(owned, self._owned) and same(list(objects.values()), self._objects):
            self._following.follow(optimizers_of(self._members))
            return self._members
        members = []
        for parameter in owned:
            if parameter not in objects:
                self._make(parameter, specialization)
            made = objects[parameter]
            options = self._optimizer._get_grad_clip_args(parameter)  # type: ignore[arg-type]
            members.append(Member(getattr(made, "optimizer", made), clips[parameter], options))
        self._owned, self._objects, self._members = owned, list(objects.values()), members
        self._following.follow(optimizers_of(members))
        return members

    def conditions(self, specialization: Specialization) -> list[Condition]:
        objects = self._optimizer.optim_objs
        held = conditions.attribute(self._optimizer, "optim_objs")
        return [
            conditions.holds(held, type(objects), [*objects, *objects.values()]),
            *specialization.prototype.store.conditions(specialization.prototype.params),
        ]

    def _make(self, parameter: Tensor, specialization: Specialization) -> None:
        """Make the optimizer of a parameter. Pyro does so within a step only, which is too late to trace it."""
        optimizer = self._optimizer
        made = optimizer.optim_objs[parameter] = optimizer._get_optim(parameter)
        optimizer.grad_clip[parameter] = optimizer._get_grad_clip(parameter)  # type: ignore[arg-type]
        name = specialization.prototype.store.held.param_name(parameter)
        state = optimizer._state_waiting_to_be_consumed.pop(name, None)
        if state is not None:
            pyro.optim.optim._load_state_dict(made, state)

    def step_eagerly(self, specialization: Specialization | None, loss: Callable[[], Tensor]) -> Tensor:
        if specialization is not None:
            parameters = _of_store(specialization)
            refuse_subsampled(member.optimizer for member in self.members(specialization, parameters))
            for parameter in parameters:
                parameter.grad = None
        if (
            specialization is None or specialization.tally is not None
        ):  # another branch of the program may have other parameters
            with poutine.trace(param_only=True) as seen:
                value = _differentiated(loss, self.retain_graph)
            parameters = _once(site["value"].unconstrained() for site in seen.trace.nodes.values())  # type: ignore[union-attr]
        else:
            value = _differentiated(loss, self.retain_graph)
        if not math.isnan(value.detach()):
            self._optimizer(parameters)
        for parameter in parameters:
            parameter.grad = None
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        optimizer = self._optimizer
        states = {**optimizer._state_waiting_to_be_consumed, **optimizer.get_state()}
        states.pop(None, None)  # of parameters that are gone from Pyro's store
        return {"kind": self._kind(), "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizer, parameters = self._optimizer, current_store().tensors()
        check_entries(state, ("kind",), "the optimizer")
        check_kind(state["kind"], self._kind())
        check_entries(state, ("states",), "the optimizer")
        made, waiting = {}, {}
        for name, saved in state["states"].items():
            if name not in parameters:
                waiting[name] = saved
                continue
            parameter = parameters[name]
            made[parameter] = one = optimizer._get_optim(parameter)
            inner, of_inner = one, saved
            if hasattr(one, "optimizer"):
                check_entries(saved, ("scheduler", "optimizer"), f"the scheduler of {name}")
                inner, of_inner = one.optimizer, saved["optimizer"]
            check_entries(of_inner, ("state", "param_groups"), f"the optimizer of {name}")
            for options in of_inner["param_groups"]:
                for kept in of_inner["state"].values():
                    check_state(inner, name, parameter, options, kept)
            try:
                pyro.optim.optim._load_state_dict(one, saved)
            except Exception as error:
                raise not_taken(f"{state['kind']} of {name}", error) from error
        for held, values in (
            (optimizer.optim_objs, made),
            (optimizer.grad_clip, {p: optimizer._get_grad_clip(p) for p in made}),  # type: ignore[arg-type]
            (optimizer._state_waiting_to_be_consumed, waiting),
        ):
            held.clear()
            held.update(values)

    def _kind(self) -> str:
        constructors = (getattr(self._optimizer, f"pt_{part}_constructor", None) for part in ("scheduler", "optim"))
        return "Pyro's " + " of ".join(_named(constructor) for constructor in constructors if constructor is not None)


def _named(constructor: Any) -> str:
    return getattr(constructor, "__qualname__", None) or type(constructor).__qualname__


def _of_store(specialization: Specialization) -> list[Tensor]:
    prototype = specialization.prototype
    if prototype.local:
        raise refuse_module_local(prototype.local)
    tensors = map(prototype.store.get, prototype.params)
    return _once(tensor for tensor in tensors if tensor is not None)


def _once(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Each of them once: one parameter may have several names."""
    return list({id(parameter): parameter for parameter in parameters}.values())


def _differentiated(loss: Callable[[], Tensor], retain_graph: bool | None) -> Tensor:
    """A loss, after ``backward`` if it depends on a parameter that is trained: as in Pyro, it need not."""
    value = loss()
    if value.requires_grad:
        value.backward(retain_graph=retain_graph)
    return value


def optimizing(optimizer: Any, loss_module: Callable[[], LossModule], retain_graph: bool | None = None) -> Optimizing:
    """What steps this optimizer.

    :raises sgc.errors.OptimizerError: if it is of no kind that is known.
    """
    refuse_wrong_kind(optimizer)
    is_pyros = isinstance(optimizer, PyroOptim)
    made = PyroOptimizing(optimizer) if is_pyros else TorchOptimizing(optimizer, loss_module)
    made.retain_graph = retain_graph
    return made
