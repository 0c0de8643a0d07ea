"""What a specialization relies on. Each guard checks one thing, says in words what it expects, and names a miss."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from sgc.capture.arguments import Structure, flatten
from sgc.capture.python.partials import CallRecord
from sgc.capture.state.external_reads import ExternalReads
from sgc.capture.state.owners import ArgumentOwner, Owner, StoreOwner
from sgc.capture.state.param_store import PYROS
from sgc.capture.state.random_state import drawn_from
from sgc.errors import ArgumentError, CaptureError
from sgc.graph.program import Input, ValueGuard
from sgc.guards.environment import Environment
from sgc.guards.identity import twins
from sgc.guards.metadata import Alike, Meta, meta, meta_difference, meta_shown
from sgc.guards.snapshots import PLAIN, difference, is_as_noted, note, shown
from sgc.native import conditions
from sgc.native.conditions import Condition

LEAVES = frozenset((Tensor, nn.Parameter, bool, int, float, complex, str, bytes, type(None)))
"""Kinds of arguments that have no parts."""


class Call:
    """The arguments of one call, flattened."""

    __slots__ = ("args", "kwargs", "leaves", "spec")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.leaves: list[Any]
        self.spec: TreeSpec | Structure | tuple[Any, ...]
        if LEAVES.issuperset(map(type, args)) and (not kwargs or LEAVES.issuperset(map(type, kwargs.values()))):
            # By far the most frequent call: no tree to take apart.
            self.leaves, self.spec = [*args, *kwargs.values()], (len(args), *kwargs)
        else:
            self.leaves, self.spec = flatten((args, kwargs))


class Guard(ABC):
    """A condition on a call."""

    def conditions(self) -> list[Condition]:
        """The usual case in which it holds. Where they are not all true, :meth:`check` is asked."""
        return [conditions.NEVER]

    def check(self, call: Call) -> list[Tensor] | str | None:
        """What :meth:`miss` says; the inputs of the call where that is None and the guard has fetched them."""
        return self.miss(call)

    @abstractmethod
    def miss(self, call: Call) -> str | None:
        """None where the condition holds, else what differs."""

    @abstractmethod
    def describe(self) -> Iterator[str]:
        """The condition in words, a line each."""


class ArgumentGuard(Guard):
    """The structure of the arguments, the metadata of their tensors and which of these are one, and the values of
    everything else.

    Of a partial with a record of its calls, their results.
    """

    def __init__(self, call: Call, names: Sequence[str], records: Mapping[int, CallRecord]) -> None:
        self._records = {i: record for i, record in records.items() if record.complete}
        self._spec = call.spec
        self._names = tuple(names)
        self._expected: list[Meta | None] = []
        self._constants: list[Any] = []
        self._notes: list[Any] = []
        for name, leaf in zip(names, call.leaves, strict=True):
            self._expected.append(meta(leaf) if isinstance(leaf, Tensor) else None)
            if not isinstance(leaf, Tensor):
                _check(name, leaf)
            # What has become of the very same object is the environment guard's affair, of an array this one's.
            self._constants.append(leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
            self._notes.append(None if isinstance(leaf, Tensor) else note(leaf))
        tensors = [leaf for leaf in call.leaves if isinstance(leaf, Tensor)]
        self._twins = twins(tensors)
        self._alike = Alike(tensors)

    def conditions(self) -> list[Condition]:
        if len({*self._twins}) < len(self._twins):
            return [conditions.NEVER]  # different tensors would be alike
        tensors = [conditions.leaf(i) for i, expected in enumerate(self._expected) if expected is not None]
        found = [conditions.equals(conditions.spec(), self._spec), conditions.alike(tensors, self._alike.check)]
        for i, (constant, noted) in enumerate(zip(self._constants, self._notes, strict=True)):
            if self._expected[i] is None:
                found.append(conditions.like(conditions.leaf(i), constant, functools.partial(is_as_noted, noted)))
        return found

    def miss(self, call: Call) -> str | None:
        if call.spec != self._spec:
            return "the structure of the arguments changed"
        for i, (leaf, expected) in enumerate(zip(call.leaves, self._expected, strict=True)):
            if expected is not None:
                if not isinstance(leaf, Tensor):
                    return f"{self._names[i]} was a tensor, is {type(leaf).__name__}"
                if meta(leaf) != expected:
                    return meta_difference(self._names[i], expected, meta(leaf))
            elif isinstance(leaf, Tensor):
                return f"{self._names[i]} was {shown(self._constants[i])}, is a tensor"
            elif leaf is not self._constants[i]:
                changed = difference(self._names[i], leaf, self._notes[i])
                if changed is not None and i in self._records and self._is_like(i, leaf):
                    changed = self._records[i].miss(leaf, lambda one, other: difference("", one, other) is None)
                if changed is not None:
                    return changed
        if twins([leaf for leaf in call.leaves if isinstance(leaf, Tensor)]) != self._twins:
            return "other arguments than before are one and the same tensor"
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
        for name, expected, constant in zip(self._names, self._expected, self._constants, strict=True):
            if expected is None:
                yield f"{name} == {constant!r}"
            else:
                shape, dtype, device, requires_grad, strides = expected
                yield f"{name}: {dtype}{meta_shown(shape)} on {device}, strides {meta_shown(strides)}" + (
                    ", requires grad" if requires_grad else ""
                )


def _check(name: str, leaf: Any) -> None:
    known = (*PLAIN, np.ndarray, np.generic, nn.Module)
    if not isinstance(leaf, known) and not callable(leaf) and not hasattr(leaf, "__dict__"):
        raise ArgumentError(
            f"{name} is a {type(leaf).__module__}.{type(leaf).__qualname__}, whose contents cannot be guarded",
            remedy="pass tensors, numbers, strings, None, or containers of them "
            "(torch.utils._pytree.register_pytree_node and register_dataclass make a class a container)",
        )


class TensorGuard(Guard):
    """The metadata of parameters, buffers and constants, which it fetches from their owners."""

    def __init__(self, inputs: Sequence[Input], owners: dict[str, Owner]) -> None:
        self._names = [declared.name for declared in inputs]
        self._owners = [owners[name] for name in self._names]
        self._positions = [o.position if isinstance(o, ArgumentOwner) else None for o in self._owners]
        tensors = [owner.fetch() for owner in self._owners]
        self._expected = [meta(tensor) if tensor is not None else None for tensor in tensors]
        in_store = [i for i, owner in enumerate(self._owners) if isinstance(owner, StoreOwner)]
        elsewhere = [i for i, p in enumerate(self._positions) if p is None and i not in in_store]
        self._fetched = in_store + elsewhere  # in this order; the call's own are there already
        self._store = next((owner.store for owner in self._owners if isinstance(owner, StoreOwner)), PYROS)
        names = (owner.name for owner in self._owners if isinstance(owner, StoreOwner))
        self._constraints = {name: self._store.constraint(name) for name in names}
        self._twins = twins([tensors[i] for i in self._fetched])
        self._alike = Alike([tensor for i in self._fetched if (tensor := tensors[i]) is not None])

    def conditions(self) -> list[Condition]:
        if any(self._expected[i] is None for i in self._fetched):
            return [conditions.NEVER]
        gives = [self._fetched.index(i) if p is None else -1 - p for i, p in enumerate(self._positions)]
        reads = [self._owners[i].read() for i in self._fetched]
        return [*self._store.constrained(self._constraints), conditions.alike(reads, self._alike.check, gives)]

    def miss(self, call: Call) -> str | None:
        answer = self.check(call)
        return answer if isinstance(answer, str) else None

    def check(self, call: Call) -> list[Tensor] | str:
        """The inputs of the call where all are as expected, else what differs."""
        fetched: list[Tensor] = []
        for name, owner, position, expected in zip(
            self._names, self._owners, self._positions, self._expected, strict=True
        ):
            if position is not None:
                fetched.append(call.leaves[position])
                continue
            tensor = owner.fetch()
            if tensor is None:
                return f"the parameter {name} is gone"
            if meta(tensor) != expected:
                assert expected is not None
                return meta_difference(name, expected, meta(tensor))
            fetched.append(tensor)
        for name, constraint in self._constraints.items():
            current = self._store.constraint(name)
            if current is not constraint and repr(current) != repr(constraint):
                return f"the constraint of parameter {name} was {constraint}, is {current}"
        if twins([fetched[i] for i in self._fetched]) != self._twins:
            return "other parameters or buffers than before are one and the same tensor"
        return fetched

    def fetch(self, call: Call, position: int) -> Tensor:
        """The input at a position, of a call for which this guard holds."""
        leaf = self._positions[position]
        tensor: Tensor | None = self._owners[position].fetch() if leaf is None else call.leaves[leaf]
        assert tensor is not None
        return tensor

    def gone(self) -> bool:
        """Whether a tensor has no owner any more (``clear_param_store()`` was called, say)."""
        return any(
            owner.fetch() is None
            for owner, position in zip(self._owners, self._positions, strict=True)
            if position is None
        )

    def describe(self) -> Iterator[str]:
        for name, position, expected in zip(self._names, self._positions, self._expected, strict=True):
            if position is None and expected is not None:
                shape, dtype, device, requires_grad, _ = expected
                yield f"{name}: {dtype}{meta_shown(shape)} on {device}" + (", requires grad" if requires_grad else "")


class EnvironmentGuard(Guard):
    """The globals, closures and attributes that model and guide name, and those of objects among the arguments.

    And environment and context variables that an eager run has asked for.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], call: Call, reads: ExternalReads) -> None:
        objects = [leaf for leaf in call.leaves if not isinstance(leaf, (Tensor, np.ndarray, np.generic, *PLAIN))]
        self._environment = Environment(model, guide, *objects, reads=reads)

    @property
    def modules(self) -> Iterable[nn.Module]:
        """The modules that they lead to."""
        return self._environment.modules.values()

    def conditions(self) -> list[Condition]:
        return self._environment.conditions()

    def miss(self, call: Call) -> str | None:
        return self._environment.changed()

    def refuse_used_up(self) -> None:
        """Refuse a program that has drawn from a generator, or has taken items of an iterator or file, that it keeps.

        :raises CaptureError: with the names.
        """
        drawn, taken = self._environment.drawn(), self._environment.taken()
        if drawn:
            raise drawn_from(" and ".join(drawn))
        if taken:
            raise CaptureError(
                f"the program takes items of {' and '.join(taken)}, which a compiled program would not do again",
                remedy="take them outside of model and guide and pass them as arguments",
            )

    def describe(self) -> Iterator[str]:
        yield from self._environment


class ValuesGuard(Guard):
    """The values that the program read from its inputs while it was captured (``int(lengths.max())``).

    :param tensors: the guard of these inputs; it comes before this one.
    """

    def __init__(self, guards: Sequence[ValueGuard], inputs: Sequence[Input], tensors: TensorGuard) -> None:
        self._tensors = tensors
        position = {declared.name: i for i, declared in enumerate(inputs)}
        self._guards = [(guard, [position[name] for name in guard.inputs]) for guard in guards]

    def conditions(self) -> list[Condition]:
        return [conditions.NEVER] if self._guards else []

    def miss(self, call: Call) -> str | None:
        with torch.no_grad():
            for guard, positions in self._guards:
                value = guard.module(*(self._tensors.fetch(call, i).detach().clone() for i in positions))
                if value.shape != guard.value.shape or not torch.equal(value, guard.value):
                    where = f" (read at {guard.source})" if guard.source else ""
                    return f"a value computed from {', '.join(guard.inputs)} changed{where}"
        return None

    def describe(self) -> Iterator[str]:
        for guard, _ in self._guards:
            yield f"{guard.value.tolist()} from {', '.join(guard.inputs)}, read at {guard.source}"
