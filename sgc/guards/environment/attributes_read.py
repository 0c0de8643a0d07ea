"""Which attributes of the user's objects the code that ran can read: others may change from step to step.

An object that trains often keeps its losses and counters beside what its model reads.
"""

from __future__ import annotations

import abc
import dataclasses
import dis
import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol

from pyro.nn import PyroModule
from torch import nn

from sgc.guards.environment.libraries import is_installed, names_in
from sgc.tracing.source import is_installed_code

_COMPUTED = frozenset(
    (
        *("getattr", "getattr_static", "getmembers", "vars", "__dict__", "__getattribute__", "attrgetter"),
        *("asdict", "astuple", "fields", "eval", "exec", "copy", "deepcopy", "dumps", "format", "format_map"),
    )
)
"""Functions that read attributes without a name in the code that calls them."""

_MAKING = frozenset(("__init__", "__new__", "__post_init__", "__init_subclass__", "__setstate__"))
"""What is run when an object is made; it names each attribute."""

_PLAIN_BASES = frozenset((object, nn.Module, PyroModule, abc.ABC, Generic, Protocol))
"""Library classes whose own code reads no attribute that a user's class adds."""


class AttributesRead:
    """The attributes that a run of a program can read, by the names in its code.

    :param codes: the user's code that ran.
    """

    def __init__(self, codes: Iterable[types.CodeType]) -> None:
        kept = frozenset(codes)
        self.names: frozenset[str] = frozenset().union(*(code.co_names for code in kept))
        self._ran = self.names.union(code.co_name for code in kept)
        # What an installed package computes the names of are attributes of its own objects.
        self._any = any(_is_computed(code) for code in kept if not is_installed_code(code))
        self._of_classes: dict[type, frozenset[str] | None] = {}

    def includes(self, cls: type, name: str) -> bool:
        """Whether an attribute of that name may be read of an object of a class, or of the class."""
        if self._any or name.startswith("_pyro_") or (name.startswith("__") and name.endswith("__")):
            return True
        if cls not in self._of_classes:
            self._of_classes[cls] = self._of_class(cls)
        names = self._of_classes[cls]
        return names is None or name in names

    def _of_class(self, cls: type) -> frozenset[str] | None:
        """The names; None for any, where a library's code reads them, or names are computed."""
        bases = [base for base in cls.__mro__ if base not in _PLAIN_BASES]
        if dataclasses.is_dataclass(cls) or any(is_installed(base) for base in bases):
            return None
        methods = {name: code for base in reversed(bases) for name, code in _codes(base)}
        names, known = set(self._ran | {"forward"}), -1
        # Also of what a later run may call where the one that was watched did not.
        while len(names) != known:
            known = len(names)
            for name, code in methods.items():
                if name in names or (name.startswith("__") and name not in _MAKING):
                    if _is_computed(code):
                        return None
                    names |= names_in(code)
        return frozenset(names)


def _codes(cls: type) -> Iterator[tuple[str, types.CodeType]]:
    """The code of a class's methods and properties, by their names."""
    for name, part in vars(cls).items():
        for function in _functions(part):
            yield name, inspect.unwrap(function).__code__


def _functions(part: Any) -> Iterator[types.FunctionType]:
    held = (part, *(getattr(part, name, None) for name in ("__func__", "func", "fget")))
    yield from (one for one in held if isinstance(one, types.FunctionType))


@functools.lru_cache(maxsize=4096)
def _is_computed(code: types.CodeType) -> bool:
    """Whether attributes may be read by names that are not in the code."""
    if not names_in(code).isdisjoint(_COMPUTED):
        return True
    return any(i.opname == "MATCH_CLASS" for i in dis.get_instructions(code))
