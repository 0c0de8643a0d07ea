"""Model and guide that are wrapped anew at each call: one program, whose numbers and tensors are those of the call."""

from __future__ import annotations

import copy
import dis
import functools
import types
from collections.abc import Callable
from typing import Any

import pyro.poutine.messenger
from torch import Tensor

from sgc.guards.environment.libraries import is_of_a_library
from sgc.guards.snapshots import difference, loosened, moved, note
from sgc.tracing.state.places import is_number
from sgc.tracing.state.value_parts import is_library_handler, parts_of, with_part

Program = tuple[Callable[..., Any], Callable[..., Any]]

_BOUND = pyro.poutine.messenger._bound_partial  # private to Pyro: what handlers make of a function


class Rewrapped:
    """Copies of the wrappers of a model and guide, into which numbers and tensors of others like them are written."""

    def __init__(self, program: Program) -> None:
        self.program: Program = copied(program[0]), copied(program[1])

    def take(self, program: Program) -> bool:
        """Be like another program, if it differs in nothing but numbers and tensors; whether it does."""
        if not are_similar(self.program, program):
            return False
        for own, other in zip(self.program, program, strict=True):
            _update(own, other)
        return True


def is_wrapped(program: Program) -> bool:
    """Whether model or guide is a wrapper that can be copied."""
    return any(copied(part) is not part for part in program)


def are_similar(program: Program, other: Program) -> bool:
    """Whether two programs differ in nothing but numbers, and tensors that are not trained."""
    for one, two in zip(program, other, strict=True):
        noted = note(one)
        for path in moved(two, noted):
            part = functools.reduce(lambda value, position: (parts_of(value) or [])[position], path, two)
            if isinstance(part, Tensor) and part.requires_grad:
                return False
            if not isinstance(part, Tensor) and not is_number(part):
                return False
            noted = loosened(noted, path, Tensor if isinstance(part, Tensor) else type(part))
        if difference("", two, noted) is not None:
            return False
    return True


def copied(value: Any) -> Any:
    """A wrapper with copies of what it is made of; anything else as it is."""
    copy_of = _COPIES.get(type(value))
    if copy_of is None and is_library_handler(value):
        copy_of = _copy_of_handler
    return value if copy_of is None else copy_of(value)


def _copy_of_parts(value: Any) -> Any:
    parts = [copied(part) for part in parts_of(value) or []]
    made = value
    for position, part in enumerate(parts):
        made = with_part(made, (position,), part)
    return made


def _copy_of_bound(value: Any) -> Any:
    made = _BOUND(copied(value.func))
    made.__dict__.update(value.__dict__)
    return made


def _copy_of_handler(value: Any) -> Any:
    made = copy.copy(value)
    vars(made).update({name: copied(part) for name, part in vars(value).items() if not name.startswith("_")})
    return made


def _copy_of_function(value: types.FunctionType) -> types.FunctionType:
    """With variables of its own, unless it is a library's, or writes them."""
    if not value.__closure__ or is_of_a_library(value.__module__ or "") or _writes_outside(value.__code__):
        return value
    if _holds_itself(value):
        return value
    made: types.FunctionType = _copy_of_parts(value)
    return made


def _holds_itself(function: types.FunctionType) -> bool:
    """Whether a function is among the parts of its parts, as one that calls itself: a copy would have no end."""
    ahead, seen = [function], set[int]()
    while ahead:
        for part in parts_of(ahead.pop()) or []:
            if part is function:
                return True
            if type(part) in _COPIES and id(part) not in seen:
                seen.add(id(part))
                ahead.append(part)
    return False


def _writes_outside(code: types.CodeType) -> bool:
    written = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("STORE_DEREF", "DELETE_DEREF")}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return not written.isdisjoint(code.co_freevars) or any(map(_writes_outside, inner))


_COPIES: dict[type, Callable[[Any], Any]] = {
    functools.partial: _copy_of_parts,
    list: _copy_of_parts,
    tuple: _copy_of_parts,
    dict: _copy_of_parts,
    types.FunctionType: _copy_of_function,
    _BOUND: _copy_of_bound,
}


def _update(own: Any, other: Any) -> Any:
    """What stands for ``other`` from now on: ``own``, with other numbers and tensors in it, or ``other`` itself."""
    if own is other or copied(own) is own:
        return other
    if is_library_handler(own):
        for name, part in vars(other).items():
            if not name.startswith("_"):
                vars(own)[name] = _update(vars(own)[name], part)
    elif isinstance(own, _BOUND):
        own.func = _update(own.func, other.func)  # type: ignore[misc]  # a slot of its own
    elif isinstance(own, functools.partial):
        keywords = {name: _update(own.keywords[name], part) for name, part in other.keywords.items()}
        args = tuple(map(_update, own.args, other.args))
        own.__setstate__((_update(own.func, other.func), args, keywords, own.__dict__))  # type: ignore[attr-defined]
    elif isinstance(own, types.FunctionType):
        for mine, cell in zip(own.__closure__ or (), other.__closure__ or (), strict=True):
            mine.cell_contents = _update(mine.cell_contents, cell.cell_contents)
    elif isinstance(own, list):
        own[:] = map(_update, own, other)
    elif isinstance(own, dict):
        own.update({key: _update(own[key], part) for key, part in other.items()})
    elif isinstance(own, tuple):
        return tuple(map(_update, own, other))
    return own
