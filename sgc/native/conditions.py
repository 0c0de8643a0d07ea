"""Conditions that are asked at every call: cheap ones, enough for what they stand for.

They are data, tuples that begin with their kind, so that C++ can go through them (``conditions.cpp``) as well as the
function here, with the same answers. A *read* says where a value is found, a condition what it must be, and a group of
conditions goes with whom to ask where they are not all true.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import partial
from operator import is_
from types import CellType
from typing import Any

from sgc.native.library import is_available, library

Read = tuple[Any, ...]
Condition = tuple[Any, ...]
Group = tuple[tuple[Condition, ...], Callable[[Any], Any] | None]
"""The conditions of a guard, and what decides about a call where one is false (None: all must be true). It returns None
if the guard holds nevertheless, a list if it holds and this is the call's inputs, and anything else if it fails."""


class _Read(IntEnum):
    """Kinds of reads, numbered as in ``reads.cpp``."""

    ENTRY, ENTRY_OF, ITEM, CELL, ATTRIBUTE, RESULT, LEAF, SPEC, FIXED, APPLIED = range(10)


class _Condition(IntEnum):
    """Kinds of conditions, numbered as in ``conditions.cpp``."""

    IS, ABSENT, EQUALS, LIKE, HOLDS, ALIKE, SAME, DISJOINT = range(8)


# -- reads


def entry(holder: Mapping[Any, Any], key: Any) -> Read:
    """An entry of a dictionary, or of another mapping, of which it must be there."""
    return (_Read.ENTRY if isinstance(holder, dict) else _Read.ITEM), holder, key


def entry_of(holder: Read, key: Any) -> Read:
    """An entry of the dictionary that a read gives, which is read once for a row of entries that share this object."""
    return _Read.ENTRY_OF, holder, key


def item(holder: Any, key: Any) -> Read:
    """An item of anything that has some."""
    return _Read.ITEM, holder, key


def contents(cell: CellType) -> Read:
    """What a closure's cell holds."""
    return _Read.CELL, cell, None


def attribute(holder: Any, name: str) -> Read:
    """An attribute."""
    return _Read.ATTRIBUTE, holder, name


def result(function: Callable[..., Any], *args: Any) -> Read:
    """What a function returns."""
    return _Read.RESULT, function, args


def leaf(position: int) -> Read:
    """A leaf of the call's arguments."""
    return _Read.LEAF, None, position


def spec() -> Read:
    """The structure of the call's arguments."""
    return _Read.SPEC, None, None


def fixed(value: Any) -> Read:
    """An object, whatever it holds by then."""
    return _Read.FIXED, value, None


def applied(read: Read, function: Callable[[Any], Any]) -> Read:
    """What a function makes of what is read; a ``ValueError`` of its says that it can make nothing of it."""
    return _Read.APPLIED, read, function


# -- conditions


def is_empty(read: Read, value: Any) -> Condition:
    """It is None, or a container that holds nothing, as ``value`` was."""
    return is_same(read, None) if value is None else holds(read, type(value), ())


def is_same(read: Read, expected: Any) -> Condition:
    """It is this object."""
    return _Condition.IS, read, expected


def absent(read: Read) -> Condition:
    """A dictionary has no such entry."""
    return _Condition.ABSENT, read, None


def equals(read: Read, expected: Any) -> Condition:
    """It is equal to this."""
    return _Condition.EQUALS, read, expected


def like(read: Read, expected: Any, decide: Callable[[Any], bool]) -> Condition:
    """It is this object, or another one for which ``decide`` is true."""
    return _Condition.LIKE, read, (expected, decide)


Array = tuple[int, type, Any, tuple[int, ...], bytes]
"""A position, and what an array there is to have: its type, dtype, shape and bytes."""


def holds(
    read: Read,
    kind: type,
    objects: Sequence[Any] | None,
    arrays: Sequence[Array] = (),
    decide: Callable[[Any], bool] | None = None,
) -> Condition:
    """It is of this type and holds these very objects (a dictionary its keys, then its values), some of them arrays.

    :param objects: None where it is an array itself.
    :param decide: whether one that does not is allowed; without it none is.
    """
    return _Condition.HOLDS, read, (kind, None if objects is None else tuple(objects), tuple(arrays), decide)


def alike(reads: Sequence[Read], check: Callable[..., bool], gives: Sequence[int] | None = None) -> Condition:
    """They are tensors for which ``check(*tensors)`` is true.

    :param gives: what the call's inputs are then: positions among these, or ``-1 - i`` for the leaf ``i``.
    """
    return _Condition.ALIKE, tuple(reads), check, None if gives is None else tuple(gives)


def same_tensors(expected: Sequence[Any]) -> Condition:
    """The call's inputs are these objects; None stands for any."""
    return _Condition.SAME, tuple(expected)


def disjoint(
    written: Mapping[int, int | None],
    others: Mapping[int, int | None],
    measure: Callable[[Any], int],
    kept: Iterable[tuple[int, int]] = (),
) -> Condition:
    """The memory of the call's inputs at some positions is not that of others.

    :param written: positions of inputs that share none with each other, with the others, and with what is kept; and how
        many bytes of memory each takes up, gaps included; None where that differs from call to call.
    :param others: likewise of inputs that may share memory among each other.
    :param measure: gives how many bytes an input takes up.
    :param kept: the first address of stretches of memory, and the one behind the last.
    """
    borders: list[int] = []
    for start, end in sorted(kept):
        if borders and start <= borders[-1]:
            borders[-1] = max(borders[-1], end)
        else:
            borders += (start, end)
    sizes = (tuple(-1 if size is None else size for size in part.values()) for part in (written, others))
    inputs = tuple(written), next(sizes), tuple(others), next(sizes)
    return _Condition.DISJOINT, inputs, tuple(borders), measure


NEVER = is_same(fixed(None), True)
"""Always false."""


# -- asking


Ask = Callable[[Any], list[Any] | None]
"""Asks groups one after another about a call: its inputs (none, where no condition finds them) if all hold, or None."""


def watch(groups: Sequence[Group], *, native: bool) -> Ask:
    """A function that asks all groups about a call.

    :param native: ask in C++ if there is a compiler, as there must be for Inductor on a CPU.
    """
    if native and is_available():
        return asking(watched(groups))
    return partial(inputs_of, tuple(groups))


def watched(groups: Sequence[Group]) -> Any:
    """Groups as C++ goes through them."""
    return library().watch(tuple(groups))


def asking(watched: Any) -> Ask:
    """A function that asks them all about a call."""
    return partial(library().inputs_of, watched)


def inputs_of(groups: Sequence[Group], call: Any) -> list[Any] | None:
    """What ``inputs_of`` of ``conditions.cpp`` does, in Python."""
    inputs: list[Any] = []
    for conditions, check in groups:
        try:
            if all(_is_true(condition, call, inputs) for condition in conditions):
                continue
        except (AttributeError, LookupError, ValueError):
            pass  # What is no tensor any more lacks attributes, an empty cell contents. The guard itself says more.
        answer = () if check is None else check(call)
        if type(answer) is list:
            inputs = answer
        elif answer is not None:
            return None
    return inputs


def value(read: Read) -> Any:
    """What is read that is not of a call."""
    return _value(read, None)


_NOTHING: Any = object()
"""Stands for what a dictionary lacks."""


def _value(read: Read, call: Any) -> Any:
    kind, of, key = read
    match kind:
        case _Read.ENTRY:
            return of.get(key, _NOTHING)
        case _Read.ENTRY_OF:
            return _value(of, call).get(key, _NOTHING)
        case _Read.ITEM:
            return of[key]
        case _Read.CELL:
            return of.cell_contents
        case _Read.ATTRIBUTE:
            return getattr(of, key)
        case _Read.RESULT:
            return of(*key)
        case _Read.LEAF:
            return call.leaves[key]
        case _Read.SPEC:
            return call.spec
        case _Read.APPLIED:
            return key(_value(of, call))
        case _:
            return of


def _is_true(condition: Condition, call: Any, inputs: list[Any]) -> bool:
    """Whether a condition holds; one that finds the call's inputs puts them into the list."""
    kind = condition[0]
    if kind == _Condition.ALIKE:
        return _are_alike(condition, call, inputs)
    if kind == _Condition.SAME:
        _, expected = condition
        return len(inputs) == len(expected) and all(
            wanted is None or tensor is wanted for tensor, wanted in zip(inputs, expected, strict=True)
        )
    if kind == _Condition.DISJOINT:
        return are_disjoint(condition, inputs)
    _, read, expected = condition
    value = _value(read, call)
    match kind:
        case _Condition.IS:
            return value is expected
        case _Condition.ABSENT:
            return value is _NOTHING
        case _Condition.EQUALS:
            return bool(value == expected)
        case _Condition.LIKE:
            return value is expected[0] or bool(expected[1](value))
        case _:
            return _holds_the_same(value, expected) or (expected[3] is not None and bool(expected[3](value)))


def _holds_the_same(value: Any, expected: Any) -> bool:
    kind, objects, arrays, _ = expected
    if type(value) is not kind:
        return False
    if objects is None:
        return _is_same_array(value, arrays[0])
    held = [*value, *value.values()] if isinstance(value, dict) else value
    if len(held) != len(objects) or not all(map(is_, held, objects)):
        return False
    return all(_is_same_array(held[array[0]], array) for array in arrays)


def _is_same_array(value: Any, expected: Array) -> bool:
    kind: Any
    _, kind, dtype, shape, content = expected
    return type(value) is kind and value.dtype is dtype and value.shape == shape and value.tobytes() == content


def _are_alike(condition: Condition, call: Any, inputs: list[Any]) -> bool:
    _, reads, check, gives = condition
    tensors = [_value(read, call) for read in reads]
    # A nested tensor has no sizes; torch would end the process when asked for them.
    if any(tensor.is_nested for tensor in tensors) or (tensors and not check(*tensors)):
        return False
    if gives is not None:
        inputs[:] = [tensors[i] if i >= 0 else call.leaves[-1 - i] for i in gives]
    return True


def are_disjoint(condition: Condition, inputs: Sequence[Any]) -> bool:
    """Whether a condition of the kind :func:`disjoint` is true of some inputs."""
    _, (written, written_sizes, others, sizes), borders, measure = condition
    taken: list[tuple[int, int]] = []
    for position, size in (*zip(written, written_sizes, strict=True), *zip(others, sizes, strict=True)):
        tensor = inputs[position]
        size = measure(tensor) if size < 0 else size
        start = tensor.data_ptr() if size else 0
        if not start:
            continue
        end, before = start + size, bisect_right(borders, start)
        if before % 2 or (before < len(borders) and borders[before] < end):
            return False
        if any(start < other_end and other_start < end for other_start, other_end in taken):
            return False
        if position in written:
            taken.append((start, end))
    return True
