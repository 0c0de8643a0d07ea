"""What a program takes from around it: globals, closures and attributes, besides its arguments.

A capture burns plain Python values in. Were one rebound later (an annealed ``self.beta``, a global tensor), the
compiled program would be stale; so the values that the code of model and guide can name are noted, and compared
at each call.
"""

from __future__ import annotations

import contextvars
import dis
import functools
import inspect
import os
import sys
import sysconfig
import types
import weakref
from array import array
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from pyro.infer.autoguide import AutoGuide
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from sgc.capture.state.external_reads import ExternalReads
from sgc.capture.state.random_state import state_of
from sgc.guards.attributes_read import AttributesRead, slots_of
from sgc.guards.hooks import GLOBAL_HOOKS, HOOKS
from sgc.guards.iterators import progress
from sgc.guards.libraries import LIBRARY_ROOTS, is_installed, is_machinery, is_of_a_library, names_in
from sgc.guards.library_objects import BAGS, MATHEMATICAL, attributes, is_cache, is_of_a_run
from sgc.guards.snapshots import MISSING, PLAIN, contents, difference, is_immutable, note, still_holds
from sgc.native import conditions
from sgc.native.conditions import Condition, Read

_STANDARD = sysconfig.get_path("stdlib")
_MAX_DEPTH = 6
_NUMBERS = (np.ndarray, array, bytearray)
_CONTAINERS = (list, tuple, deque, dict, set, frozenset, *_NUMBERS)

_VARIABLES: dict[Any, Any] = vars(os.environ)["_data"]
"""The dictionary behind ``os.environ``, private to Python: of a dictionary C++ watches an entry that is not there."""


class Environment:
    """A snapshot of the names that model and guide can reach.

    Containers are compared by what they hold (up to a thousand entries), all else first by identity. What the
    ``modules`` that it meets are made of is for others to watch.

    :param roots: model, guide, and objects among the arguments.
    :param reads: what a run of the program has asked for, by which names in code.
    """

    def __init__(self, *roots: Any, reads: ExternalReads) -> None:
        self._read = AttributesRead(reads.codes)
        self._named = self._read.names
        # The modes of modules that run are the mode guard's; of others only a look at them matters.
        self._of_modules = _OF_MODULES - ({"training"} & self._named)
        self._seen: dict[int, Any] = {}
        self._fixed: list[tuple[Any, Any, Any, Any]] = []
        self._changing: list[tuple[Any, Any, Any]] = []
        self._labels: dict[int, str] = {}
        self._generators: list[tuple[str, Any, Hashable]] = []
        self._iterators: list[tuple[str, Any, Hashable]] = []
        self.modules: dict[int, nn.Module] = {}
        for root in (*roots, *GLOBAL_HOOKS.values()):
            self._visit(root, "", 0)
        for name in reads.variables:
            key = os.environ.encodekey(name)
            self._note(_VARIABLES, key, _VARIABLES.get(key, MISSING), "os.environ: ", 0)
        for variable in reads.contexts.values():
            self._note(variable, None, variable.get(MISSING), f"ContextVar {variable.name}", 0)
        self._seen.clear()

    def conditions(self) -> list[Condition]:
        """Conditions that are true only if :meth:`changed` says None: names hold the very same objects."""
        found = [_is_same(holder, key, value) for holder, key, value, _ in self._fixed]
        for holder, key, noted in self._changing:
            found += still_holds(_read(holder, key), noted)
        return found

    def changed(self) -> str | None:
        """The name of a value that is not what it was, None if all are."""
        for holder, key, expected, noted in self._fixed:
            value = read(holder, key)
            if value is not expected:
                found = difference(self._label(holder, key), value, noted)
                if found is not None:
                    return found
        for holder, key, noted in self._changing:
            found = difference("", read(holder, key), noted)
            if found is not None:
                return self._label(holder, key) + found
        return None

    def drawn(self) -> list[str]:
        """The names of the random generators that have been drawn from."""
        return [label for label, generator, state in self._generators if state_of(generator) != state]

    def taken(self) -> list[str]:
        """The names of the iterators and open files that items have been taken of."""
        return [label for label, iterator, place in self._iterators if progress(iterator) != place]

    def __len__(self) -> int:
        return len(self._fixed) + len(self._changing)

    def __iter__(self) -> Iterator[str]:
        for holder, key, expected, _ in self._fixed:
            if isinstance(expected, PLAIN):
                yield f"{self._label(holder, key)} == {expected!r}"
        for holder, key, _ in self._changing:
            yield f"{self._label(holder, key)} == {read(holder, key)!r}"
        for holder, key, expected, _ in self._fixed:
            if expected is not MISSING and not isinstance(expected, (*PLAIN, types.CodeType)):
                yield f"{self._label(holder, key)} is the object seen at capture"

    def _label(self, holder: Any, key: Any) -> str:
        prefix = self._labels.get(id(holder), "")
        return f"{prefix}{key}" if key is not None else prefix

    def _note(self, holder: Any, key: Any, value: Any, label: str, depth: int) -> None:
        if isinstance(value, types.ModuleType) or (isinstance(value, type) and _is_library(value)):
            return
        self._labels.setdefault(id(holder), label)
        noted = note(value)
        if isinstance(value, _CONTAINERS) and not is_immutable(noted):
            self._changing.append((holder, key, noted))
        else:
            self._fixed.append((holder, key, value, noted))
        self._visit(value, f"{label}{key or ''}", depth + 1)

    def _visit(self, value: Any, label: str, depth: int) -> None:
        if (
            depth > _MAX_DEPTH
            or id(value) in self._seen
            or isinstance(value, (Tensor, types.ModuleType, *_NUMBERS, *PLAIN))
        ):
            return
        self._seen[id(value)] = value
        generator = value.__self__ if isinstance(value, types.BuiltinMethodType) else value
        state = state_of(generator)
        if state is not None:
            self._generators.append((label or f"a {type(generator).__name__}", generator, state))
        place = progress(generator)
        if place is not None:
            self._iterators.append((label or f"a {type(value).__name__}", generator, place))
        if isinstance(value, type):
            self._visit_class(value, depth)
        elif isinstance(value, (staticmethod, classmethod, property)):
            self._visit(value.fget if isinstance(value, property) else value.__func__, label, depth)
        elif isinstance(value, weakref.ref):
            self._visit(value(), label, depth)
        elif isinstance(value, types.MethodType):
            self._visit(value.__func__, label, depth)
            self._visit(value.__self__, label, depth)
        elif isinstance(value, functools.partial):
            self._visit(value.func, label, depth)
            for position, part in enumerate(value.args):
                self._note(value.args, position, part, f"{label}.args.", depth)
            for name, part in value.keywords.items():
                self._note(value.keywords, name, part, f"{label}.keywords.", depth)
        elif isinstance(value, types.FunctionType):
            if hasattr(value, "__wrapped__"):
                self._visit(value.__wrapped__, label, depth)
            if not _is_library(value):
                self._visit_function(value, depth)
        elif isinstance(value, nn.Module):
            for path, module in value.named_modules():
                self._visit_module(
                    module, f"{type(value).__name__}.{path}." if path else f"{type(value).__name__}.", depth
                )
        elif isinstance(value, _CONTAINERS):
            for part in value.values() if isinstance(value, dict) else value:
                self._visit(part, f"{label}[...]", depth + 1)
            if not is_installed(type(value)):
                self._visit_object(value, label, depth)
        elif isinstance(value, (Messenger, *MATHEMATICAL)) and _is_library(type(value)):
            for name in attributes(value):
                # They are made of one another to any depth (masked, of events, expanded, transformed), but of few.
                self._note(vars(value), name, vars(value)[name], f"{type(value).__name__}.", depth - 1)
        elif isinstance(value, BAGS) and type(value).__module__ in sys.stdlib_module_names:
            self._note(value, "__dict__", vars(value), f"{label}.", depth)
        elif _is_library(type(value)):
            self._visit_named_attributes(value, depth)
        elif not is_machinery(type(value)):
            self._visit_object(value, label, depth)

    def _visit_named_attributes(self, value: Any, depth: int) -> None:
        """Of a library's object: the attributes that the code which ran names, or a method that it names."""
        held: dict[str, Any] = getattr(value, "__dict__", {})
        if isinstance(value, (types.FunctionType, ParamStoreDict)):
            return
        methods = (inspect.getattr_static(type(value), name, None) for name in self._named)
        inner = [names_in(method.__code__) for method in methods if isinstance(method, types.FunctionType)]
        for name in sorted(held.keys() & self._named.union(*inner)):
            self._note(held, name, held[name], f"{type(value).__name__}.", depth)

    def _visit_object(self, value: Any, label: str, depth: int) -> None:
        slots = () if is_installed(type(value)) else slots_of(type(value))
        if not slots and not hasattr(value, "__dict__"):
            self._visit(type(value), label, depth)
            return
        for name, part in list(getattr(value, "__dict__", {}).items()):
            if (
                self._read.includes(type(value), name)
                and not (isinstance(value, Messenger) and is_of_a_run(part))
                and not is_cache(value, name)
            ):
                self._note(vars(value), name, part, f"{type(value).__name__}.", depth)
        for name in slots:
            if self._read.includes(type(value), name):
                self._note(value, name, getattr(value, name, MISSING), f"{type(value).__name__}.", depth)
        self._note_defaults(value, f"{type(value).__name__}.", depth)
        self._visit(type(value), label, depth)

    def _note_defaults(self, value: Any, label: str, depth: int) -> None:
        """That what its class gives an object is not overridden by an attribute of its own."""
        own: dict[str, Any] = getattr(value, "__dict__", {})
        for base in type(value).__mro__:
            if not is_installed(base):
                for name, part in vars(base).items():
                    if (
                        name not in own
                        and not name.startswith("__")
                        and not inspect.isdatadescriptor(part)
                        and self._read.includes(type(value), name)
                    ):
                        self._note(own, name, MISSING, label, depth)

    def _visit_class(self, cls: type, depth: int) -> None:
        for base in cls.__mro__:
            if not is_installed(base):
                self._seen[id(base)] = base
                for name, part in list(vars(base).items()):
                    if self._read.includes(cls, name) and (
                        isinstance(part, types.FunctionType) or not (name.startswith("__") or name == "_abc_impl")
                    ):
                        self._note(vars(base), name, part, f"{base.__qualname__}.", depth)

    def _visit_module(self, module: nn.Module, label: str, depth: int) -> None:
        library = _is_library(type(module))
        if not _is_own(type(module)):
            self.modules[id(module)] = module
        for name in HOOKS:
            self._visit(vars(module).get(name), label, depth)
        for name, part in list(vars(module).items()):
            if name in self._of_modules or (name.startswith("_pyro_") and name != "_pyro_samples"):
                continue
            if library and name.startswith("_") and name != "_pyro_samples":
                continue
            if (library or isinstance(module, AutoGuide)) and is_of_a_run(part):
                continue
            if not (library or self._read.includes(type(module), name)):
                continue
            self._note(vars(module), name, part, label, depth)
        if not library:
            self._note_defaults(module, label, depth)
            self._visit(type(module), label, depth)

    def _visit_function(self, function: types.FunctionType, depth: int) -> None:
        label = f"{function.__qualname__}: "
        self._note(function, "__code__", function.__code__, label, depth)
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self._note(function, name, getattr(function, name), label, depth)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._note(cell, None, contents(cell), f"{label}{name}", depth)
            self._visit_named(contents(cell), function.__code__, depth)
        for name in sorted(_globals(function.__code__)):
            if name in function.__globals__:
                self._note(function.__globals__, name, function.__globals__[name], label, depth)
                self._visit_named(function.__globals__[name], function.__code__, depth)
        for name, part in vars(function).items():
            if name != "__wrapped__":
                self._note(vars(function), name, part, f"{function.__qualname__}.", depth)

    def _visit_named(self, module: Any, code: types.CodeType, depth: int) -> None:
        """What a function's code can name of a Python module of the user's, and of modules in it."""
        if not isinstance(module, types.ModuleType) or is_of_a_library(module.__name__) or depth > _MAX_DEPTH:
            return
        for name in sorted(names_in(code) & vars(module).keys()):
            self._note(vars(module), name, vars(module)[name], f"{module.__name__}.", depth)
            self._visit_named(vars(module)[name], code, depth + 1)


_OF_MODULES = frozenset((*vars(nn.Module()), "training"))


def read(holder: Any, key: Any) -> Any:
    """What a holder has under a key or a name (None in a cell), :data:`MISSING` where nothing is."""
    if isinstance(holder, contextvars.ContextVar):
        return holder.get(MISSING)
    if key is None:
        return contents(holder)
    if isinstance(holder, (dict, types.MappingProxyType)):
        return holder.get(key, MISSING)
    return holder[key] if isinstance(holder, tuple) else getattr(holder, key, MISSING)


def _read(holder: Any, key: Any) -> Read:
    """As :func:`read` reads, at a call."""
    if isinstance(holder, contextvars.ContextVar):
        return conditions.result(holder.get, MISSING)
    if key is None:
        return conditions.contents(holder)
    if isinstance(holder, (dict, types.MappingProxyType)):
        return conditions.entry(holder, key)
    return conditions.item(holder, key) if isinstance(holder, tuple) else conditions.attribute(holder, key)


def _is_same(holder: Any, key: Any, value: Any) -> Condition:
    if value is not MISSING:
        return conditions.is_same(_read(holder, key), value)
    return (
        conditions.absent(conditions.entry(holder, key))
        if type(holder) is dict
        else conditions.is_same(conditions.result(read, holder, key), value)
    )


@functools.lru_cache(maxsize=4096)
def _globals(code: types.CodeType) -> frozenset[str]:
    """The global names that a function's code, and that of the functions written in it, uses."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals(constant)
    return frozenset(names)


def _is_library(thing: Any) -> bool:
    module = getattr(thing, "__module__", None) or ""
    if module.partition(".")[0] in LIBRARY_ROOTS:
        return True
    code = getattr(thing, "__code__", None)
    if not isinstance(code, types.CodeType):
        return False
    return code.co_filename.startswith(_STANDARD) and "site-packages" not in code.co_filename


def _is_own(cls: type) -> bool:
    """Whether a class is sgc's: a loss module shows other tensors as it compiles."""
    return cls.__module__.partition(".")[0] == "sgc"
