"""What can be reached from a program's objects: through attributes, containers, closures, and the globals it names.

Other programs' objects end the way: those of sgc and of torch's compilers, loggers, threads, frames, and the code of
libraries. Nor is a tensor looked into, but for the attributes that somebody has given it.
"""

from __future__ import annotations

import dis
import functools
import gc
import linecache
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sgc.errors import SourceLine
from sgc.guards.environment.libraries import is_installed, is_machinery, is_of_a_library, names_in
from sgc.tracing.state.value_parts import PLAIN, slots_of

_ENDS = frozenset((*PLAIN, type(...), type(NotImplemented), range, np.dtype, torch.Generator, torch.layout))
BUILTIN = frozenset((dict, list, tuple, set, frozenset))
"""Containers that have no attributes. A data set may be a million of them."""

_NO_PARTS = (types.ModuleType, types.CodeType, types.FrameType, types.TracebackType, torch.UntypedStorage)
_TOOLS = (
    *("sgc.", "torch.fx.", "torch._", "unittest.", "_pytest.", "IPython."),
    *("asyncio.", "concurrent.", "multiprocessing."),
)
_NAMES = ("name", "variable")
_OF_MODULES = frozenset(("_parameters", "_buffers", "_modules"))


class Step(NamedTuple):
    """How a part is in its whole: as what, and under which attribute, key, position or name."""

    kind: str
    key: Any = None


INSIDE = Step("inside")
UNWRITTEN = Step("unwritten")
"""In an object that lets nobody write; it may be one of its slots, too."""


class Visit:
    """An object that can be reached, and over which other one."""

    __slots__ = ("parent", "step", "value")

    def __init__(self, value: Any, parent: Visit | None, step: Step) -> None:
        self.value = value
        self.parent = parent
        self.step = step

    @property
    def label(self) -> str:
        """How the user would write it."""
        kind, key = self.step
        if self.parent is None or kind in _NAMES:
            return str(key)
        if kind == "owner":
            return type(self.value).__name__
        if kind == "class":
            return str(self.value.__qualname__)
        label = self.parent.label
        if kind == "attribute":
            return label if self.is_of_module() else f"{label}.{key}"
        if kind == "item":
            inside = self.parent.is_of_module()
            return f"{label}.{key}" if inside else f"{label}[{key!r}]" if isinstance(key, PLAIN) else f"{label}[...]"
        return label

    def is_of_module(self) -> bool:
        """Whether it is one of the dictionaries that a module keeps its parameters, buffers or modules in."""
        owner = self.parent.parent if self.parent is not None else None
        return self.step.key in _OF_MODULES and owner is not None and isinstance(owner.value, nn.Module)

    def owner(self) -> Any:
        """The object whose attribute it is in; None where it is in none's."""
        visit: Visit | None = self
        while visit is not None and visit.step.kind != "attribute":
            visit = visit.parent if visit.step.kind not in _NAMES else None
        holder = visit.parent if visit is not None else None
        if holder is not None and holder.step.kind == "attributes":
            holder = holder.parent
        return None if holder is None else holder.value

    def name(self) -> str | None:
        """The attribute or variable that it is in."""
        visit: Visit | None = self
        while visit is not None and not (visit.step.kind in ("attribute", *_NAMES) and isinstance(visit.step.key, str)):
            visit = visit.parent
        return None if visit is None else str(visit.step.key)


def reachable(roots: Iterable[tuple[str, Any]]) -> dict[int, Visit]:
    """Every object that can be reached and may hold others, by its identity, the nearest first."""
    visits: dict[int, Visit] = {}
    waiting = deque(Visit(value, None, Step("name", name)) for name, value in roots)
    while waiting:
        visit = waiting.popleft()
        if id(visit.value) in visits:
            continue
        visits[id(visit.value)] = visit
        for step, part in parts(visit):
            if id(part) not in visits and not is_end(part):
                waiting.append(Visit(part, visit, step))
    return visits


def is_end(value: Any) -> bool:
    """Whether nothing is looked for in a value."""
    kind = type(value)
    if kind in _ENDS:
        return True
    if kind in BUILTIN:
        return False
    if isinstance(value, Tensor):
        return not (kind in (Tensor, nn.Parameter) and vars(value))
    if isinstance(value, _NO_PARTS):
        return True
    if isinstance(value, type):
        return is_installed(value)
    return f"{kind.__module__}.".startswith(_TOOLS) or is_machinery(kind)


def parts(visit: Visit) -> Iterator[tuple[Step, Any]]:
    """What an object holds, and as what. Some parts may be ends."""
    value, kind = visit.value, visit.step.kind
    if not isinstance(value, type) and type(value) not in BUILTIN:
        own = getattr(value, "__dict__", None)
        if type(own) is dict:
            yield Step("attributes"), own
        yield from ((Step("attribute", name), part) for name, part in in_slots(value))
        yield Step("class"), type(value)
    if isinstance(value, dict):
        if kind == "globals":
            return  # of these only what the code names
        for key, part in dict.items(value):
            if type(part) not in _ENDS:
                yield entry(visit, key), part
            if type(key) not in _ENDS:
                yield Step("key"), key
    elif isinstance(value, (list, tuple, deque)):
        for position, part in enumerate(value):
            if type(part) not in _ENDS:
                yield Step("item", position), part
    elif isinstance(value, (set, frozenset)):
        for part in value:
            yield INSIDE, part
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        for name, part in list(vars(value).items()):
            yield Step("attribute", name), part
        yield from ((Step("class"), base) for base in value.__bases__)
    elif isinstance(value, types.CellType):
        for part in gc.get_referents(value):
            yield INSIDE, part
    elif isinstance(value, weakref.ref):
        referent = value()
        if isinstance(referent, Tensor):
            yield INSIDE, referent
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            for position, part in enumerate(value.flat):
                yield Step("item", position), part
    elif isinstance(value, types.MethodType):
        yield Step("owner"), value.__self__
        yield INSIDE, value.__func__
    elif not isinstance(value, Tensor):
        yield from ((INSIDE, part) for part in gc.get_referents(value))


def entry(visit: Visit, key: Any) -> Step:
    """How the value of a key is in a dictionary."""
    kind = visit.step.kind
    return Step("attribute" if kind == "attributes" else "name" if kind == "globals" else "item", key)


def in_slots(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object keeps outside of a dictionary."""
    for name in _slots(type(value)):  # type: ignore[arg-type]
        if hasattr(value, name):
            yield name, getattr(value, name)


@functools.lru_cache(maxsize=4096)
def _slots(cls: type) -> tuple[str, ...]:
    return tuple(slots_of(base for base in cls.__mro__ if not is_installed(base)))


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[Step, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Step("variable", name), cell
    yield from ((INSIDE, part) for part in function.__defaults__ or ())
    yield INSIDE, function.__kwdefaults__
    if not is_of_a_library(function.__module__ or ""):
        yield from named(function.__globals__, function.__code__)


def named(names: dict[str, Any], code: types.CodeType) -> Iterator[tuple[Step, Any]]:
    """What a function's code names of a module of the user's, and of modules that are in it."""
    yield Step("globals"), names
    for name in sorted(names_in(code) & names.keys()):
        part = names[name]
        if not isinstance(part, types.ModuleType):
            yield Step("name", name), part
        elif not is_of_a_library(part.__name__) and vars(part) is not names:
            yield from named(vars(part), code)


_STORES = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "STORE_NAME")
_WRITES = frozenset(("append", "appendleft", "add", "update", "setdefault", "extend", "insert", "push", "put", "copy_"))


def line_of(name: str, function: types.FunctionType) -> SourceLine | None:
    """Where a function writes into the attribute or variable of a name, or into the container that is there."""
    if not linecache.getline(function.__code__.co_filename, function.__code__.co_firstlineno):
        return None  # written by Python itself, as a dataclass's
    lines: dict[int, list[dis.Instruction]] = {}
    line = function.__code__.co_firstlineno
    for instruction in dis.get_instructions(function.__code__):
        line = (instruction.positions.lineno if instruction.positions else None) or line
        lines.setdefault(line, []).append(instruction)
    for line, instructions in lines.items():
        names = {i.argval for i in instructions if isinstance(i.argval, str)}
        stores = any(i.opname in _STORES and i.argval == name for i in instructions)
        writes = not _WRITES.isdisjoint(names) or any(i.opname == "STORE_SUBSCR" for i in instructions)
        if stores or (name in names and writes):
            return SourceLine(function.__code__.co_filename, line, function.__code__.co_name)
    return None
