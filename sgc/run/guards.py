"""What a specialization relies on. Each guard checks one thing, says in words what it expects, and names a miss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._pytree import TreeSpec

from sgc.capturing.arguments import Structure, flatten
from sgc.capturing.calls import CallRecord
from sgc.capturing.parameters import ArgumentOwner, Owner, StoreOwner
from sgc.errors import ArgumentError
from sgc.graph.program import Input, ValueGuard
from sgc.run.environment import Environment
from sgc.run.notes import PLAIN, difference, note, shown


@dataclass
class Call:
    """The arguments of one call, flattened, and the input tensors that the last :class:`TensorGuard` fetched."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: list[Any] = field(init=False)
    spec: TreeSpec | Structure | int = field(init=False)
    tensors: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        if not self.kwargs and all(type(arg) is Tensor for arg in self.args):
            # By far the most frequent call: no tree to take apart.
            self.leaves, self.spec = list(self.args), len(self.args)
        else:
            self.leaves, self.spec = flatten((self.args, self.kwargs))


class Guard(Protocol):
    """A condition on a call."""

    def miss(self, call: Call) -> str | None:
        """None where the condition holds, else what differs."""
        ...

    def describe(self) -> Iterator[str]:
        """The condition in words, a line each."""
        ...


_Meta = tuple[torch.Size, torch.dtype, torch.device, bool, tuple[int, ...]]


def _meta(tensor: Tensor) -> _Meta:
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride()


def _difference(name: str, expected: _Meta, actual: _Meta) -> str:
    for what, one, other in zip(("shape", "dtype", "device", "requires_grad", "stride"), expected, actual, strict=True):
        if one != other:
            return f"the {what} of {name} was {_show(one)}, is {_show(other)}"
    raise AssertionError("no difference")


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, (torch.Size, tuple)) else str(value)


class ArgumentGuard:
    """The structure of the arguments, the metadata of their tensors, and the values of everything else.

    Of a partial with a record of its calls, their results.
    """

    def __init__(self, call: Call, names: Sequence[str], records: Mapping[int, CallRecord]) -> None:
        self._records = {i: record for i, record in records.items() if record.complete}
        self._spec = call.spec
        self._names = tuple(names)
        self._expected: list[_Meta | None] = []
        self._constants: list[Any] = []
        self._notes: list[Any] = []
        for name, leaf in zip(names, call.leaves, strict=True):
            self._expected.append(_meta(leaf) if isinstance(leaf, Tensor) else None)
            if not isinstance(leaf, Tensor):
                _check(name, leaf)
            # What has become of the very same object is the environment guard's affair, of an array this one's.
            self._constants.append(leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
            self._notes.append(None if isinstance(leaf, Tensor) else note(leaf))

    def miss(self, call: Call) -> str | None:
        if call.spec != self._spec:
            return "the structure of the arguments changed"
        for i, (leaf, meta) in enumerate(zip(call.leaves, self._expected, strict=True)):
            if meta is not None:
                if not isinstance(leaf, Tensor):
                    return f"{self._names[i]} was a tensor, is {type(leaf).__name__}"
                if _meta(leaf) != meta:
                    return _difference(self._names[i], meta, _meta(leaf))
            elif isinstance(leaf, Tensor):
                return f"{self._names[i]} was {shown(self._constants[i])}, is a tensor"
            elif leaf is not self._constants[i]:
                changed = difference(self._names[i], leaf, self._notes[i])
                if changed is not None and i in self._records and self._is_like(i, leaf):
                    changed = self._records[i].miss(leaf, lambda one, other: difference("", one, other) is None)
                if changed is not None:
                    return changed
        return None

    def varying(self, call: Call) -> Iterator[int]:
        """The positions of partials that have the function they had here, and other arguments."""
        if call.spec == self._spec:
            for i, leaf in enumerate(call.leaves):
                if self._is_like(i, leaf) and difference("", leaf, self._notes[i]) is not None:
                    yield i

    def _is_like(self, position: int, leaf: Any) -> bool:
        """Whether both are partials of one function that hold as many arguments, under the same names."""
        noted = self._constants[position]
        return (
            type(leaf) is functools.partial is type(noted)
            and len(leaf.args) == len(noted.args)
            and list(leaf.keywords) == list(noted.keywords)
            and not leaf.__dict__
            and difference("", leaf.func, self._notes[position].parts[0]) is None
        )

    def describe(self) -> Iterator[str]:
        for name, meta, constant in zip(self._names, self._expected, self._constants, strict=True):
            if meta is None:
                yield f"{name} == {constant!r}"
            else:
                yield f"{name}: {meta[1]}{_show(meta[0])} on {meta[2]}, strides {_show(meta[4])}" + (
                    ", requires grad" if meta[3] else ""
                )


def _check(name: str, leaf: Any) -> None:
    known = (*PLAIN, np.ndarray, np.generic, nn.Module)
    if not isinstance(leaf, known) and not callable(leaf) and not hasattr(leaf, "__dict__"):
        raise ArgumentError(
            f"{name} is a {type(leaf).__module__}.{type(leaf).__qualname__}, whose contents cannot be guarded",
            remedy="pass tensors, numbers, strings, None, or containers of them "
            "(torch.utils._pytree.register_pytree_node and register_dataclass make a class a container)",
        )


class TensorGuard:
    """The metadata of parameters, buffers and constants; it also fetches them from their owners, for all guards
    after it and for the call itself.
    """

    def __init__(self, inputs: Sequence[Input], owners: dict[str, Owner]) -> None:
        self._names = [declared.name for declared in inputs]
        self._owners = [owners[name] for name in self._names]
        self._positions = [o.position if isinstance(o, ArgumentOwner) else None for o in self._owners]
        self._expected: list[_Meta | None] = []
        self._constraints: list[tuple[str, Any]] = []
        store = pyro.get_param_store()
        for owner in self._owners:
            tensor = owner.fetch()
            self._expected.append(_meta(tensor) if tensor is not None else None)
            if isinstance(owner, StoreOwner):
                self._constraints.append((owner.name, store._constraints[owner.name]))

    def miss(self, call: Call) -> str | None:
        """None where all tensors are as expected; then ``call.tensors`` holds them."""
        found: list[Tensor] = []
        for name, owner, position, meta in zip(self._names, self._owners, self._positions, self._expected, strict=True):
            if position is not None:
                found.append(call.leaves[position])
                continue
            tensor = owner.fetch()
            if tensor is None:
                return f"the parameter {name} is gone"
            if (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride()) != meta:
                assert meta is not None
                return _difference(name, meta, _meta(tensor))
            found.append(tensor)
        store = pyro.get_param_store()._constraints
        for name, constraint in self._constraints:
            current = store.get(name)
            if current is not constraint and repr(current) != repr(constraint):
                return f"the constraint of parameter {name} was {constraint}, is {current}"
        call.tensors = found
        return None

    def gone(self) -> bool:
        """Whether a tensor has no owner any more (``clear_param_store()`` was called, say)."""
        return any(
            owner.fetch() is None
            for owner, position in zip(self._owners, self._positions, strict=True)
            if position is None
        )

    def describe(self) -> Iterator[str]:
        for name, position, meta in zip(self._names, self._positions, self._expected, strict=True):
            if position is None and meta is not None:
                yield f"{name}: {meta[1]}{_show(meta[0])} on {meta[2]}" + (", requires grad" if meta[3] else "")


class ModeGuard:
    """Train or eval mode of each module, the default dtype, autocast, and Pyro's switch of validation if it counts."""

    def __init__(self, modules: Sequence[nn.Module], *, follows_validation: bool) -> None:
        self._validation = Distribution._validate_args
        self._follows_validation = follows_validation
        self._modules = [inner for module in modules for inner in module.modules()]
        self._training = [module.training for module in self._modules]
        self._dtype = torch.get_default_dtype()
        self._autocast = _autocast()

    def miss(self, call: Call) -> str | None:
        for module, training in zip(self._modules, self._training, strict=True):
            if module.training is not training:
                return f"{type(module).__name__} was in {_mode(training)} mode, is in {_mode(not training)} mode"
        if torch.get_default_dtype() is not self._dtype:
            return f"the default dtype was {self._dtype}, is {torch.get_default_dtype()}"
        if Distribution._validate_args is not self._validation and self._follows_validation:
            return f"Pyro's validation was {_switched(self._validation)}, is {_switched(not self._validation)}"
        if _autocast() != self._autocast:
            return f"autocast was {_shown_autocast(self._autocast)}, is {_shown_autocast(_autocast())}"
        return None

    def describe(self) -> Iterator[str]:
        yield f"default dtype {self._dtype}"
        if self._follows_validation:
            yield f"Pyro's validation {_switched(self._validation)}"
        for module, training in zip(self._modules, self._training, strict=True):
            yield f"{type(module).__name__} in {_mode(training)} mode"


def _autocast() -> dict[str, torch.dtype]:
    """The devices on which autocast is on, and its dtype there."""
    return {device: torch.get_autocast_dtype(device) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)}


def _shown_autocast(state: dict[str, torch.dtype]) -> str:
    return ", ".join(f"{dtype} on {device}" for device, dtype in state.items()) or "off"


def _switched(on: bool) -> str:
    return "on" if on else "off"


def _mode(training: bool) -> str:
    return "train" if training else "eval"


class EnvironmentGuard:
    """The globals, closures and attributes that model and guide name, and those of objects among the arguments."""

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], call: Call) -> None:
        objects = [leaf for leaf in call.leaves if not isinstance(leaf, (Tensor, np.ndarray, np.generic, *PLAIN))]
        self._environment = Environment(model, guide, *objects)

    def miss(self, call: Call) -> str | None:
        return self._environment.changed()

    def describe(self) -> Iterator[str]:
        yield from self._environment


class ValuesGuard:
    """The values that the program read from its inputs while it was captured (``int(lengths.max())``)."""

    def __init__(self, guards: Sequence[ValueGuard], inputs: Sequence[Input]) -> None:
        position = {declared.name: i for i, declared in enumerate(inputs)}
        self._guards = [(guard, [position[name] for name in guard.inputs]) for guard in guards]

    def miss(self, call: Call) -> str | None:
        if not self._guards:
            return None
        with torch.no_grad():
            for guard, positions in self._guards:
                value = guard.module(*(call.tensors[i].detach().clone() for i in positions))
                if value.shape != guard.value.shape or not torch.equal(value, guard.value):
                    where = f" (read at {guard.source})" if guard.source else ""
                    return f"a value computed from {', '.join(guard.inputs)} changed{where}"
        return None

    def describe(self) -> Iterator[str]:
        for guard, _ in self._guards:
            yield f"{guard.value.tolist()} from {', '.join(guard.inputs)}, read at {guard.source}"
