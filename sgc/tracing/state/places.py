"""Where a value lives that a program uses: a place that is looked into at each call.

A tensor or number that is bound anew from call to call (an attribute, an entry of a list, a global, a variable of a
closure, a part of an argument) is an input of the program, fetched from its place.
"""

from __future__ import annotations

import contextvars
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgc.native import conditions
from sgc.native.conditions import Read
from sgc.tracing.state.value_parts import MISSING, contents, part_at, with_part

NUMBERS: dict[type, torch.dtype] = {float: torch.float64, int: torch.int64, np.float64: torch.float64}
"""Kinds of numbers that may be inputs, and the dtypes that hold what Python computes with."""

_LARGEST = 2**53


def look_up(holder: Any, key: Any) -> Any:
    """What a holder has under a key or a name (None in a cell; of a class itself), :data:`MISSING` where nothing is."""
    if isinstance(holder, type):
        return vars(holder).get(key, MISSING)
    if isinstance(holder, contextvars.ContextVar):
        return holder.get(MISSING)
    if key is None:
        return contents(holder)
    if isinstance(holder, dict):
        return holder.get(key, MISSING)
    return holder[key] if isinstance(holder, tuple) else getattr(holder, key, MISSING)


def read_of(holder: Any, key: Any) -> Read:
    """As :func:`look_up` reads, at a call."""
    if isinstance(holder, type):
        return conditions.entry(vars(holder), key)
    if isinstance(holder, contextvars.ContextVar):
        return conditions.result(holder.get, MISSING)
    if key is None:
        return conditions.contents(holder)
    if isinstance(holder, dict):
        return conditions.entry(holder, key)
    return conditions.item(holder, key) if isinstance(holder, tuple) else conditions.attribute(holder, key)


@dataclass(frozen=True, eq=False)
class Place:
    """What a holder has under a key, or a part of that.

    :param holder: None for a leaf of the call's arguments, whose position is the key.
    :param path: positions among the parts of the value, of the part, and so on.
    :param label: what it is called in the program.
    """

    holder: Any = field(repr=False)
    key: Any
    path: tuple[int, ...] = ()
    label: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return id(self.holder), self.key, self.path

    @property
    def is_argument(self) -> bool:
        return self.holder is None

    def of(self, leaf: Any) -> Any:
        """What is there, given what the holder has, or the leaf."""
        return part_at(leaf, self.path)

    def value(self) -> Any:
        """What is there now, :data:`MISSING` where nothing is; not for arguments."""
        return self.of(look_up(self.holder, self.key))

    def read(self, take: Callable[[Any], Any] | None = None) -> Read:
        """How it is read at a call.

        :param take: a function of what is there that gives the value wanted.
        """
        own = conditions.leaf(self.key) if self.is_argument else read_of(self.holder, self.key)
        if take is None:
            return own if not self.path else conditions.applied(own, self.of)
        return conditions.applied(own, lambda leaf: take(self.of(leaf)))


@dataclass(frozen=True)
class PlaceOwner:
    """A tensor, or a number as a 0-d tensor, that each call finds in a place.

    :param kind: the type of the number; None for a tensor.
    """

    place: Place = field(repr=False)
    kind: type | None = None

    def fetch(self) -> Tensor | None:
        return None if self.place.is_argument else self.made(self.place.value())

    def fetch_of(self, leaves: Sequence[Any]) -> Tensor | None:
        """The tensor in a call with these leaves of its arguments."""
        return self.made(self.place.of(leaves[self.place.key])) if self.place.is_argument else self.fetch()

    def made(self, value: Any) -> Tensor | None:
        """The tensor that stands for what is there; None where that is of another kind."""
        if self.kind is None:
            return value if isinstance(value, Tensor) else None
        return as_tensor(value) if type(value) is self.kind and is_number(value) else None

    def read(self) -> Read:
        return self.place.read() if self.kind is None else self.place.read(self._number)

    def _number(self, value: Any) -> Tensor:
        made = self.made(value)
        if made is None:
            raise ValueError
        return made


def is_number(value: Any) -> bool:
    """Whether a value is a number that may be an input: one that a tensor holds exactly."""
    return type(value) in NUMBERS and (not isinstance(value, int) or abs(value) < _LARGEST)


def as_tensor(number: Any) -> Tensor:
    """A number as a 0-d tensor on the CPU, in the precision of Python's."""
    return torch.tensor(number, dtype=NUMBERS[type(number)], device="cpu")


# -- putting another value there for a while


@contextmanager
def placed(values: Sequence[tuple[Place, Any]]) -> Iterator[None]:
    """Other values are in some places, none of an argument, while this is entered.

    :raises TypeError: if a place cannot be written.
    """
    with ExitStack() as stack:
        for place, value in values:
            before = look_up(place.holder, place.key)
            container = part_at(before, place.path[:-1]) if place.path else None
            if type(container) is list:
                stack.callback(list.__setitem__, container, place.path[-1], container[place.path[-1]])
                container[place.path[-1]] = value
            elif type(container) is dict:
                key = list(container)[place.path[-1] - len(container)]
                stack.callback(dict.__setitem__, container, key, container[key])
                container[key] = value
            else:
                stack.callback(_write, place.holder, place.key, before)
                _write(place.holder, place.key, with_part(before, place.path, value))
        yield


def _write(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, types.CellType):
        holder.cell_contents = value
    elif isinstance(holder, dict):
        holder[key] = value
    elif isinstance(holder, functools.partial):
        parts = {name: getattr(holder, name) for name in ("func", "args", "keywords", "__dict__")} | {key: value}
        holder.__setstate__(tuple(parts.values()))  # type: ignore[attr-defined]  # its attributes are read-only
    elif isinstance(holder, (tuple, contextvars.ContextVar)):
        raise TypeError(f"a {type(holder).__name__} is not written")
    else:
        setattr(holder, key, value)
