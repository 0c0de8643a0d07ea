"""Copies of objects with something else in the place of their tensors."""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hole:
    """Stands for the tensor at a position of a list."""

    position: int


_UNCHANGED = (
    *(str, bytes, int, float, complex, bool, type(None), type, torch.Size, torch.dtype, torch.device),
    *(torch.SymInt, torch.SymFloat, torch.SymBool),  # these lead to all that torch knows of the sizes
    *(types.ModuleType, types.BuiltinFunctionType, torch.nn.Module),
)


class Substitution:
    """Copies containers, closures and objects, with each tensor and hole replaced.

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
        return self._object(value) if hasattr(value, "__dict__") else value

    def _sequence(self, value: Any) -> Any:
        parts = [self(part) for part in value]
        made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        self.copies[id(value)] = made
        return made

    def _dictionary(self, value: dict[Any, Any]) -> Any:
        self.copies[id(value)] = made = type(value)()
        made.update({key: self(part) for key, part in value.items()})
        return made

    def _method(self, value: types.MethodType) -> Any:
        return types.MethodType(value.__func__, self(value.__self__))

    def _function(self, value: types.FunctionType) -> Any:
        if not value.__closure__:
            return value
        cells = tuple(types.CellType() for _ in value.__closure__)
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        made.__kwdefaults__ = value.__kwdefaults__
        self.copies[id(value)] = made
        for old, new in zip(value.__closure__, cells, strict=True):
            new.cell_contents = self(old.cell_contents)
        return made

    def _reference(self, value: weakref.ref[Any]) -> Any:
        # Pyro's weakmethod: the copy must point at the copy of its owner, which is kept alive here.
        owner = value()
        return weakref.ref(self(owner)) if owner is not None else value

    def _object(self, value: Any) -> Any:
        self.copies[id(value)] = made = copy.copy(value)
        for name, part in list(vars(made).items()):
            vars(made)[name] = self(part)
        return made


_COPIED: tuple[tuple[Any, Callable[[Substitution, Any], Any]], ...] = (
    ((list, tuple), Substitution._sequence),
    (dict, Substitution._dictionary),
    (types.MethodType, Substitution._method),
    (types.FunctionType, Substitution._function),
    (weakref.ref, Substitution._reference),
)
