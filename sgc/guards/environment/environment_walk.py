"""What a program can reach of the values around it: a walk over what its code, its classes and its objects name."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import sysconfig
import types
import weakref
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from pyro.infer.autoguide import AutoGuide
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from sgc.guards.environment.attributes_read import AttributesRead
from sgc.guards.environment.iterators import progress
from sgc.guards.environment.libraries import LIBRARY_ROOTS, is_installed, is_machinery, is_of_a_library, names_in
from sgc.guards.environment.library_objects import MATHEMATICAL, NAMESPACES, attributes, is_cache, is_of_a_run
from sgc.guards.hooks import HOOKS
from sgc.tracing.state.external_reads import ExternalReads
from sgc.tracing.state.random_state import state_of
from sgc.tracing.state.value_parts import MISSING, PLAIN, contents, slots_of

_STANDARD = sysconfig.get_path("stdlib")
_MAX_DEPTH = 6
_NUMBERS = (np.ndarray, array, bytearray)
_ENDS = (Tensor, types.ModuleType, *_NUMBERS, *PLAIN)
CONTAINERS = (list, tuple, deque, dict, set, frozenset, *_NUMBERS)


class Walk(ABC):
    """Visits each value once, and gives those that have a name to :meth:`note`.

    ``modules`` are those it meets; ``generators`` and ``iterators`` are with their names and how far they were.

    :param reads: what a run of the program has asked for, by which names in code.
    """

    def __init__(self, reads: ExternalReads) -> None:
        self._read = AttributesRead(reads.codes)
        self._named = self._read.names
        # The modes of modules that run are the mode guard's; of others only a look at them matters.
        self._of_modules = _OF_MODULES - ({"training"} & self._named)
        self._seen: dict[int, Any] = {}
        self.modules: dict[int, nn.Module] = {}
        self.generators: list[tuple[str, Any, Hashable]] = []
        self.iterators: list[tuple[str, Any, Hashable]] = []
        self.functions: list[types.FunctionType] = []

    @abstractmethod
    def note(self, holder: Any, key: Any, value: Any, label: str, depth: int) -> None:
        """Note what a holder has under a key or a name (None in a cell), and visit it."""

    def visit(self, value: Any, label: str, depth: int) -> None:
        """Look into a value, unless it has been, lies too deep, or has no parts."""
        if depth > _MAX_DEPTH or id(value) in self._seen or isinstance(value, _ENDS):
            return
        self._seen[id(value)] = value
        self._note_progress(value, label)
        look = next(look for applies, look in _LOOKS if applies(value))
        look(self, value, label, depth)

    def _note_progress(self, value: Any, label: str) -> None:
        """How far a random generator or an iterator has come."""
        generator = value.__self__ if isinstance(value, types.BuiltinMethodType) else value
        state, place = state_of(generator), progress(generator)
        if state is not None:
            self.generators.append((label or f"a {type(generator).__name__}", generator, state))
        if place is not None:
            self.iterators.append((label or f"a {type(value).__name__}", generator, place))

    def _visit_method(self, value: types.MethodType, label: str, depth: int) -> None:
        self.visit(value.__func__, label, depth)
        self.visit(value.__self__, label, depth)

    def _visit_partial(self, value: functools.partial[Any], label: str, depth: int) -> None:
        self.visit(value.func, label, depth)
        prefix = f"{label or 'partial'}."
        self.note(value, "args", value.args, prefix, depth)
        self.note(value, "keywords", value.keywords, prefix, depth)

    def _visit_container(self, value: Any, label: str, depth: int) -> None:
        for part in value.values() if isinstance(value, dict) else value:
            self.visit(part, f"{label}[...]", depth + 1)
        if not is_installed(type(value)):
            self._visit_object(value, label, depth)

    def _visit_mathematical(self, value: Any, label: str, depth: int) -> None:
        """They are made of one another to any depth (masked, of events, expanded, transformed), but of few."""
        for name in attributes(value):
            self.note(vars(value), name, vars(value)[name], f"{type(value).__name__}.", depth - 1)

    def _visit_namespace(self, value: Any, label: str, depth: int) -> None:
        self.note(value, "__dict__", vars(value), f"{label or type(value).__name__}.", depth)

    def _visit_modules(self, value: nn.Module, label: str, depth: int) -> None:
        for path, module in value.named_modules():
            prefix = f"{type(value).__name__}.{path}." if path else f"{type(value).__name__}."
            self._visit_module(module, prefix, depth)

    def _visit_functions(self, value: types.FunctionType, label: str, depth: int) -> None:
        if hasattr(value, "__wrapped__"):
            self.visit(value.__wrapped__, label, depth)
        if not is_library(value):
            self._visit_function(value, depth)

    def _visit_named_attributes(self, value: Any, label: str, depth: int) -> None:
        """Of a library's object: the attributes that the code which ran names, or a method that it names."""
        held: dict[str, Any] = getattr(value, "__dict__", {})
        if isinstance(value, (types.FunctionType, ParamStoreDict)):
            return
        methods = (inspect.getattr_static(type(value), name, None) for name in self._named)
        inner = [names_in(method.__code__) for method in methods if isinstance(method, types.FunctionType)]
        for name in sorted(held.keys() & self._named.union(*inner)):
            self.note(held, name, held[name], f"{type(value).__name__}.", depth)

    def _visit_object(self, value: Any, label: str, depth: int) -> None:
        slots = () if is_installed(type(value)) else slots_of(type(value).__mro__)
        if not slots and not hasattr(value, "__dict__"):
            self.visit(type(value), label, depth)
            return
        for name, part in list(getattr(value, "__dict__", {}).items()):
            if (
                self._read.includes(type(value), name)
                and not (isinstance(value, Messenger) and is_of_a_run(part))
                and not is_cache(value, name)
            ):
                self.note(vars(value), name, part, f"{type(value).__name__}.", depth)
        for name in slots:
            if self._read.includes(type(value), name):
                self.note(value, name, getattr(value, name, MISSING), f"{type(value).__name__}.", depth)
        self._note_defaults(value, f"{type(value).__name__}.", depth)
        self.visit(type(value), label, depth)

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
                        self.note(own, name, MISSING, label, depth)

    def _visit_class(self, cls: type, label: str, depth: int) -> None:
        for base in cls.__mro__:
            if not is_installed(base):
                self._seen[id(base)] = base
                for name, part in list(vars(base).items()):
                    if self._read.includes(cls, name) and (
                        isinstance(part, types.FunctionType) or not (name.startswith("__") or name == "_abc_impl")
                    ):
                        self.note(base, name, part, f"{base.__qualname__}.", depth)

    def _visit_module(self, module: nn.Module, label: str, depth: int) -> None:
        library = is_library(type(module))
        if not _is_own(type(module)):
            self.modules[id(module)] = module
        for name in HOOKS:
            self.visit(vars(module).get(name), label, depth)
        for name, part in list(vars(module).items()):
            if name in self._of_modules or (name.startswith("_pyro_") and name != "_pyro_samples"):
                continue
            if library and name.startswith("_") and name != "_pyro_samples":
                continue
            if (library or isinstance(module, AutoGuide)) and is_of_a_run(part):
                continue
            if not (library or self._read.includes(type(module), name)):
                continue
            self.note(vars(module), name, part, label, depth)
        if not library:
            self._note_defaults(module, label, depth)
            self.visit(type(module), label, depth)

    def _visit_function(self, function: types.FunctionType, depth: int) -> None:
        self.functions.append(function)
        label = f"{function.__qualname__}: "
        self.note(function, "__code__", function.__code__, label, depth)
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self.note(function, name, getattr(function, name), label, depth)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.note(cell, None, contents(cell), f"{label}{name}", depth)
            self._visit_named(contents(cell), function.__code__, depth)
        for name in sorted(_globals(function.__code__)):
            if name in function.__globals__:
                self.note(function.__globals__, name, function.__globals__[name], label, depth)
                self._visit_named(function.__globals__[name], function.__code__, depth)
        for name, part in vars(function).items():
            if name != "__wrapped__":
                self.note(vars(function), name, part, f"{function.__qualname__}.", depth)

    def _visit_named(self, module: Any, code: types.CodeType, depth: int) -> None:
        """What a function's code can name of a Python module of the user's, and of modules in it."""
        if not isinstance(module, types.ModuleType) or is_of_a_library(module.__name__) or depth > _MAX_DEPTH:
            return
        for name in sorted(names_in(code) & vars(module).keys()):
            self.note(vars(module), name, vars(module)[name], f"{module.__name__}.", depth)
            self._visit_named(vars(module)[name], code, depth + 1)


_OF_MODULES = frozenset((*vars(nn.Module()), "training"))

_Look = Callable[[Any, Any, str, int], None]


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_LOOKS: tuple[tuple[Callable[[Any], bool], _Look], ...] = (
    (_is_a(type), Walk._visit_class),
    (_is_a(property), lambda walk, value, label, depth: walk.visit(value.fget, label, depth)),
    (_is_a(staticmethod, classmethod), lambda walk, value, label, depth: walk.visit(value.__func__, label, depth)),
    (_is_a(weakref.ref), lambda walk, value, label, depth: walk.visit(value(), label, depth)),
    (_is_a(types.MethodType), Walk._visit_method),
    (_is_a(functools.partial), Walk._visit_partial),
    (_is_a(types.FunctionType), Walk._visit_functions),
    (_is_a(nn.Module), Walk._visit_modules),
    (_is_a(*CONTAINERS), Walk._visit_container),
    (lambda value: isinstance(value, (Messenger, *MATHEMATICAL)) and is_library(type(value)), Walk._visit_mathematical),
    (
        lambda value: isinstance(value, NAMESPACES) and type(value).__module__ in sys.stdlib_module_names,
        Walk._visit_namespace,
    ),
    (lambda value: is_library(type(value)), Walk._visit_named_attributes),
    (lambda value: is_machinery(type(value)), lambda *_: None),
    (lambda value: True, Walk._visit_object),
)
"""Kinds of values and what is looked into of each; the first that applies."""


@functools.lru_cache(maxsize=4096)
def _globals(code: types.CodeType) -> frozenset[str]:
    """The global names that a function's code, and that of the functions written in it, uses."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals(constant)
    return frozenset(names)


def is_library(thing: Any) -> bool:
    """Whether a class or function is of torch, Pyro, numpy, networkx, sgc or Python itself."""
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
