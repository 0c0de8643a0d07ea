"""Copies of objects with something else in the place of their tensors."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgc.tracing.state.value_parts import slots_of


@dataclass(frozen=True)
class Hole:
    """Stands for the tensor at a position of a list."""

    position: int


_UNCHANGED = (
    *(str, bytes, int, float, complex, bool, type(None), type, torch.Size, torch.dtype, torch.device),
    *(torch.SymInt, torch.SymFloat, torch.SymBool),  # these lead to all that torch knows of the sizes
    *(types.ModuleType, types.BuiltinFunctionType, torch.jit.ScriptModule),
)


class Substitution:
    """Copies containers, closures and objects, modules among them, with each tensor and hole replaced.

    What there is only one of, an open file or an object that is its own copy, is left as it is.

    :param leaf: what stands in the place of a tensor or a hole.
    """

    def __init__(self, leaf: Callable[[Any], Any]) -> None:
        self.copies: dict[int, Any] = {}
        """The copies made so far, by the identity of what was copied: one for each, also where it refers to itself."""
        self._leaf = leaf

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (Tensor, Hole)):
            return self._leaf(value)
        if isinstance(value, _UNCHANGED):
            return value
        if id(value) in self.copies:
            return self.copies[id(value)]
        for kind, copied in _COPIED:
            if isinstance(value, kind):
                return copied(self, value)
        return self._object(value) if getattr(value, "__dict__", None) or next(_slots(value), None) else value

    def _sequence(self, value: Any) -> Any:
        parts = [self(part) for part in value]
        made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        self.copies[id(value)] = made
        return made

    def _deque(self, value: deque[Any]) -> Any:
        self.copies[id(value)] = made = type(value)(maxlen=value.maxlen)
        made.extend(self(part) for part in value)
        return made

    def _partial(self, value: functools.partial[Any]) -> Any:
        made = functools.partial(self(value.func), *self(value.args), **self(value.keywords))
        self.copies[id(value)] = made
        return made

    def _dictionary(self, value: dict[Any, Any]) -> Any:
        own = (value.default_factory,) if isinstance(value, defaultdict) else ()
        self.copies[id(value)] = made = type(value)(*own)
        made.update({key: self(part) for key, part in value.items()})
        return made

    def _method(self, value: types.MethodType) -> Any:
        return types.MethodType(value.__func__, self(value.__self__))

    def _function(self, value: types.FunctionType) -> Any:
        held = value.__closure__ or ()
        if not (held or value.__defaults__ or value.__kwdefaults__):
            return value
        cells = tuple(types.CellType() for _ in held)
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self.copies[id(value)] = made
        made.__defaults__, made.__kwdefaults__ = self(value.__defaults__), self(value.__kwdefaults__)
        for old, new in zip(held, cells, strict=True):
            new.cell_contents = self(old.cell_contents)
        return made

    def _reference(self, value: weakref.ref[Any]) -> Any:
        # Pyro's weakmethod: the copy must point at the copy of its owner, which is kept alive here.
        owner = value()
        return weakref.ref(self(owner)) if owner is not None else value

    def _object(self, value: Any) -> Any:
        self.copies[id(value)] = made = _copied(value)
        if made is value:
            return made
        own = getattr(made, "__dict__", {})
        for name, part in list(own.items()):
            if not (isinstance(value, nn.Module) and "_hooks" in name):  # these lead to whoever has registered them
                own[name] = self(part)
        for name, part in _slots(value):
            object.__setattr__(made, name, self(part))  # also where the class is frozen
        return made


def _copied(value: Any) -> Any:
    """A copy that shares its attributes; the object itself where there is only one of it."""
    if isinstance(value, nn.Module):
        made = type(value).__new__(type(value))
        vars(made).update(vars(value))
        return made
    try:
        return copy.copy(value)
    except TypeError:  # "cannot pickle": an open file, a connection
        return value


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object has in slots; one that was never set has nothing."""
    return ((name, getattr(value, name)) for name in slots_of(type(value).__mro__) if hasattr(value, name))


_COPIED: tuple[tuple[Any, Callable[[Substitution, Any], Any]], ...] = (
    ((list, tuple, set, frozenset), Substitution._sequence),
    (deque, Substitution._deque),
    (functools.partial, Substitution._partial),
    (dict, Substitution._dictionary),
    (types.MethodType, Substitution._method),
    (types.FunctionType, Substitution._function),
    (weakref.ref, Substitution._reference),
)
