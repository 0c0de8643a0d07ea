"""What is noted of a Python value at a capture, and whether a later value can stand in its place.

A capture burns Python values in. It holds for a value made anew as long as the program does the same with it: for
numbers of one type and value, containers of such, and for ``functools.partial`` objects, bound methods and functions
whose parts are the same. What has an identity of its own (a tensor, a module, any other object) must be the very
same object.
"""

from __future__ import annotations

import functools
import math
import types
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sgc.native import conditions
from sgc.native.conditions import Condition, Read
from sgc.tracing.state.places import NUMBERS
from sgc.tracing.state.value_parts import (
    BY_VALUE,
    OF_FUNCTION,
    OF_PARTIAL,
    PLAIN,
    Identity,
    is_library_handler,
    part_at,
    parts_of,
)


class Note:
    """The parts of a value, as they were; what has no parts is noted as it is. See :func:`note`.

    ``same`` holds parts that no write can change: a value that still holds these very objects is what it was. So do
    arrays, with equal type, shape and bytes, which may be among the parts of another value: ``arrays`` says which.
    """

    __slots__ = ("arrays", "kind", "parts", "same")

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.parts: list[Any] = []
        self.same: list[Any] | None = None
        self.arrays: list[int] = []


class Free:
    """Stands for a part that may be any tensor, or any number of one kind: others compare what has to be compared."""

    __slots__ = ("kind",)

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def fits(self, value: Any) -> bool:
        """Whether a value is of the kind."""
        return type(value) is self.kind or (self.kind is Tensor and isinstance(value, Tensor))


def note(value: Any, *, in_handlers: bool = True) -> Any:
    """What to compare later values with, by :func:`difference`; no later write to ``value`` reaches it.

    :param in_handlers: take effect handlers apart, too.
    """
    return _note(value, {}, in_handlers)


def _note(value: Any, notes: dict[int, tuple[Any, Note]], in_handlers: bool) -> Any:
    # ``notes`` keeps each value alive, so that no identity is used twice.
    if id(value) in notes:
        return notes[id(value)][1]
    parts = parts_of(value) if in_handlers or not is_library_handler(value) else None
    if parts is None:
        return value
    made = Note(type(value))
    notes[id(value)] = value, made  # before its parts, which may lead back to it
    made.parts = [_note(part, notes, in_handlers) for part in parts]
    if made.kind is np.ndarray:
        made.same = parts
    elif _is_walked(value) and all(is_immutable(part) or _is_array(part) for part in made.parts):
        made.same = parts
        made.arrays = [position for position, part in enumerate(made.parts) if _is_array(part)]
    return made


def _is_walked(value: Any) -> bool:
    """Whether the order of what a container holds is that in memory, which an ``OrderedDict`` may keep otherwise."""
    return type(value) in (list, tuple, dict) or (type(value) is OrderedDict and len(value) < 2)


def is_immutable(noted: Any) -> bool:
    """Whether what was noted cannot change while it is the same object (what tensors and objects hold aside)."""
    if not isinstance(noted, Note):
        return True
    return noted.kind is tuple and noted.same is not None and not noted.arrays


def _is_array(noted: Any) -> bool:
    return isinstance(noted, Note) and noted.kind is np.ndarray


def is_as_noted(noted: Any, value: Any) -> bool:
    """Whether :func:`difference` finds none."""
    return difference("", value, noted) is None


def are_alike(value: Any, other: Any) -> bool:
    """Whether a program cannot tell two values apart, as they are now."""
    return value is other or is_as_noted(note(other), value)


def still_holds(read: Read, noted: Note) -> list[Condition]:
    """A value is as it was noted; in the usual case, containers of the same objects, without a look into these.

    To be asked for while it is.
    """
    value = conditions.value(read)
    return list(_conditions(read, value, noted, set())) if is_as_noted(noted, value) else [_decided(read, noted)]


def _decided(read: Read, noted: Note) -> Condition:
    return conditions.like(read, noted, functools.partial(is_as_noted, noted))


def _conditions(read: Read, value: Any, noted: Note, seen: set[int]) -> Iterator[Condition]:
    if id(noted) in seen:
        return
    seen.add(id(noted))
    decide = functools.partial(is_as_noted, noted)
    if noted.same is not None and noted.kind is np.ndarray:
        yield conditions.holds(read, noted.kind, None, [_array(-1, noted)], decide)
    elif noted.same is not None:
        arrays = [_array(position, noted.parts[position]) for position in noted.arrays]
        yield conditions.holds(read, noted.kind, noted.same, arrays, decide)
    elif noted.kind in (list, tuple, dict):
        parts = parts_of(value)
        assert parts is not None
        yield conditions.holds(read, noted.kind, parts, decide=decide)
        for part, other in zip(parts, noted.parts, strict=True):
            if not is_immutable(other):
                yield from _conditions(conditions.fixed(part), part, other, seen)
    else:
        yield _decided(read, noted)


def _array(position: int, noted: Note) -> conditions.Array:
    assert noted.same is not None
    dtype, shape, content = noted.same
    return position, noted.kind, np.dtype(dtype), shape, content


def difference(name: str, value: Any, noted: Any) -> str | None:
    """In which part ``value`` is not what was noted, in words; None where a program cannot tell them apart."""
    return _difference(name, value, noted, {})


def _difference(name: str, value: Any, noted: Any, compared: dict[tuple[int, int], Any]) -> str | None:
    if value is noted:
        return None
    if isinstance(noted, Free):
        return None if noted.fits(value) else f"{name} was a {noted.kind.__name__}, is {shown(value)}"
    if not isinstance(noted, Note):
        return None if _same_leaf(value, noted) else _replaced(name, shown(noted), shown(value))
    if type(value) is not noted.kind:
        return f"{name} was a {noted.kind.__name__}, is {shown(value)}"
    if (id(value), id(noted)) in compared:
        return None  # found the same before, or a function that refers to itself
    compared[id(value), id(noted)] = value
    parts = parts_of(value)
    if parts is None or len(parts) != len(noted.parts):
        return f"{name} has another length"
    for position, (part, other) in enumerate(zip(parts, noted.parts, strict=True)):
        rest = _difference("", part, other, compared)
        if rest is not None:
            return f"{name}{_label(value, position, rest)}"
    return None


def _replaced(name: str, was: str, now: str) -> str:
    if was != now:
        return f"{name} was {was}, is {now}"
    return f"{name} is {now}" if now.startswith("another ") else f"{name} is another {now}"


# -- parts that may change


def loosened(noted: Any, path: Sequence[int], kind: type) -> Any:
    """What was noted, but for the part at the end of a path, which may be any one of its kind from then on."""
    if not path:
        return Free(kind)
    position, *rest = path
    made = Note(noted.kind)
    made.parts = [*noted.parts]
    made.parts[position] = loosened(made.parts[position], rest, kind)
    return made


def moved(value: Any, noted: Any) -> Iterator[tuple[int, ...]]:
    """The paths to tensors and numbers that stand where others of their kind were noted."""
    yield from _moved(value, noted, (), set())


def _moved(value: Any, noted: Any, path: tuple[int, ...], within: set[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    if value is noted or isinstance(noted, Free):
        return
    if not isinstance(noted, Note):
        if (isinstance(value, Tensor) and isinstance(noted, Tensor)) or (
            {type(value), type(noted)} <= NUMBERS.keys() and not _same_leaf(value, noted)
        ):
            yield path
        return
    parts = parts_of(value) if type(value) is noted.kind else None
    if parts is None or len(parts) != len(noted.parts) or (id(value), id(noted)) in within:
        return
    within.add((id(value), id(noted)))
    for position, (part, other) in enumerate(zip(parts, noted.parts, strict=True)):
        yield from _moved(part, other, (*path, position), within)
    within.remove((id(value), id(noted)))


def tensors_in(noted: Any) -> Iterator[int]:
    """The identities of the tensors that were noted."""
    waiting, seen = [noted], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield id(one)
        elif isinstance(one, Note) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.parts


def labelled(name: str, value: Any, path: Sequence[int]) -> str:
    """The name of a part, as differences in it are shown."""
    for position in path:
        name += _label(value, position, "")
        value = part_at(value, (position,))
    return name


def _same_leaf(one: Any, other: Any) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is float:
        return _same_float(one, other)
    if kind is complex:
        return _same_float(one.real, other.real) and _same_float(one.imag, other.imag)
    if isinstance(one, np.generic):
        return one.tobytes() == other.tobytes()
    if kind is Identity:
        return one.of is other.of
    return kind in BY_VALUE and bool(one == other)


def _same_float(one: float, other: float) -> bool:
    """Equal, also in the sign of a zero; NaN is NaN."""
    return (one == other and math.copysign(1.0, one) == math.copysign(1.0, other)) or (one != one and other != other)


def _label(value: Any, position: int, rest: str) -> str:
    """A difference in the part at ``position``, as a difference of the whole."""
    kind = type(value)
    if isinstance(value, dict):
        keys = list(value)
        return f"[{keys[position - len(keys)]!r}]{rest}" if position >= len(keys) else " has other keys"
    if isinstance(value, (list, tuple, deque)):
        return f"[{position}]{rest}" if position < len(value) else f".maxlen{rest}"
    if kind is functools.partial:
        return OF_PARTIAL[position] + rest
    if kind is types.FunctionType and position:
        cell = position - len(OF_FUNCTION)
        return f"{OF_FUNCTION[position]}{rest}" if cell < 0 else f": {value.__code__.co_freevars[cell]}{rest}"
    return f" is another {'function' if kind in (types.FunctionType, types.MethodType) else kind.__name__}"


def shown(value: Any) -> str:
    """A value in a message: plain ones in full, others by name or type, lest a message print a dataset."""
    if isinstance(value, (*PLAIN, np.generic)):
        return repr(value)
    return str(getattr(value, "__qualname__", None) or f"another {type(value).__name__}")
