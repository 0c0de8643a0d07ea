"""What a Python value is made of, in order: what two values have in common, and one with another part in a place."""

from __future__ import annotations

import functools
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger, _bound_partial  # private: what handlers make of a function

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Immutable values that are compared by value."""

BY_VALUE = frozenset((*PLAIN, types.CodeType))

LONGEST = 1024
"""Longer containers are compared by identity: copying a dataset at each capture would not be cheap."""

Parts = list[Any] | None


class Identity:
    """A part that must be the same object, though it could be taken apart."""

    __slots__ = ("of",)

    def __init__(self, of: object) -> None:
        self.of = of


class _Empty:
    def __repr__(self) -> str:
        return "not bound"


MISSING = _Empty()
"""Stands for what a name that is not bound holds."""


def slots_of(bases: Iterable[type]) -> list[str]:
    """The names under which instances have what classes written in Python keep outside of a dictionary.

    :param bases: the classes whose slots count, of ``type(value).__mro__``.
    """
    return [
        name
        for base in bases
        if "__slots__" in vars(base)
        for name, part in vars(base).items()
        if isinstance(part, types.MemberDescriptorType)
    ]


def contents(cell: types.CellType) -> Any:
    """What a closure's cell holds, :data:`MISSING` while its name is not bound."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def parts_of(value: Any) -> Parts:
    """What a value is made of, in order; None for what is compared as it is."""
    kind = type(value)
    if kind in BY_VALUE:
        return None
    take = _OF_KIND.get(kind)
    if take is None:
        take = next((of for base, of in _OF_BASES.items() if isinstance(value, base)), None)
    return take(value) if take is not None else None


def _items(value: Sequence[Any]) -> Parts:
    return list(value) if len(value) <= LONGEST else None


def _entries(value: dict[Any, Any]) -> Parts:
    return [*value.keys(), *value.values()] if len(value) <= LONGEST else None


def _of_deque(value: deque[Any]) -> Parts:
    return [*value, value.maxlen] if len(value) <= LONGEST else None


def _members(value: set[Any]) -> Parts:
    small = len(value) <= LONGEST and all(type(part) in BY_VALUE for part in value)
    return sorted(f"{type(part).__name__} {part!r}" for part in value) if small else None


def _of_ndarray(value: np.ndarray[Any, Any]) -> Parts:
    return [value.dtype.str, value.shape, value.tobytes()] if value.dtype.hasobject is False else None


def _of_function(value: types.FunctionType) -> Parts:
    return [
        value.__code__,
        Identity(value.__globals__),
        *(getattr(value, name) for name in ("__name__", "__defaults__", "__kwdefaults__", "__dict__")),
        *(contents(cell) for cell in value.__closure__ or ()),
    ]


def is_library_handler(value: Any) -> bool:
    """Whether a value is an effect handler of Pyro's, but for plates, which have a life of their own."""
    of_pyro = isinstance(value, Messenger) and type(value).__module__.startswith("pyro.poutine.")
    return of_pyro and not isinstance(value, IndepMessenger)


def _of_messenger(value: Messenger) -> Parts:
    """What an effect handler of Pyro's was made with; attributes with an underscore belong to its runs."""
    if not is_library_handler(value):
        return None
    held = {name: part for name, part in vars(value).items() if not name.startswith("_")}
    return [*held, *held.values()]


OF_FUNCTION = ("", "'s globals", ".__name__", ".__defaults__", ".__kwdefaults__", ".__dict__")
"""The parts of a function before the contents of its closure, in words."""

OF_PARTIAL = (".func", ".args", ".keywords", ".__dict__")

_OF_CONTAINERS: dict[type, Callable[[Any], Parts]] = {
    list: _items,
    tuple: _items,
    dict: _entries,
    deque: _of_deque,
    set: _members,
    frozenset: _members,
}
"""Also of classes derived from these."""

_OF_BASES: dict[type, Callable[[Any], Parts]] = {**_OF_CONTAINERS, Messenger: _of_messenger}

_OF_KIND: dict[type, Callable[[Any], Parts]] = {
    **_OF_CONTAINERS,
    np.ndarray: _of_ndarray,
    array: lambda value: [value.typecode, value.tobytes()],
    bytearray: lambda value: [bytes(value)],
    functools.partial: lambda value: [value.func, value.args, value.keywords, value.__dict__],
    types.MethodType: lambda value: [value.__func__, Identity(value.__self__)],
    types.BuiltinMethodType: lambda value: [value.__name__, Identity(value.__self__)],
    types.FunctionType: _of_function,
    _bound_partial: lambda value: [value.func, {k: v for k, v in vars(value).items() if k != "__wrapped__"}],
}


# -- one with another part


def part_at(value: Any, path: Sequence[int]) -> Any:
    """The part of the part of ... a value; :data:`MISSING` where there is none."""
    for position in path:
        parts = parts_of(value)
        if parts is None or position >= len(parts):
            return MISSING
        value = parts[position]
    return value


def with_part(value: Any, path: Sequence[int], part: Any) -> Any:
    """A value of the same kind with another part at the end of a path; itself is left as it is.

    :raises TypeError: if it, or a part on the way, is of a kind that is not made anew.
    """
    if not path:
        return part
    position, *rest = path
    parts = parts_of(value)
    make = _MADE_ANEW.get(type(value))
    if parts is None or make is None:
        raise TypeError(f"a {type(value).__name__} is not made anew")
    parts[position] = with_part(parts[position], rest, part)
    return make(value, parts)


def _dictionary(_: Any, parts: list[Any]) -> dict[Any, Any]:
    half = len(parts) // 2
    return dict(zip(parts[:half], parts[half:], strict=True))


def _partial(_: Any, parts: list[Any]) -> functools.partial[Any]:
    func, args, keywords, attributes = parts
    made = functools.partial(func, *args, **keywords)
    made.__dict__.update(attributes)
    return made


def _function(value: types.FunctionType, parts: list[Any]) -> types.FunctionType:
    cells = tuple(types.CellType() if part is MISSING else types.CellType(part) for part in parts[len(OF_FUNCTION) :])
    _, _, name, defaults, keyword_defaults, attributes = parts[: len(OF_FUNCTION)]
    made = types.FunctionType(value.__code__, value.__globals__, name, defaults, cells or None)
    made.__kwdefaults__ = keyword_defaults
    made.__dict__.update(attributes)
    return made


_MADE_ANEW: dict[type, Callable[[Any, list[Any]], Any]] = {
    list: lambda _, parts: parts,
    tuple: lambda _, parts: tuple(parts),
    dict: _dictionary,
    functools.partial: _partial,
    types.FunctionType: _function,
}
