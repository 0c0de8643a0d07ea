"""What a program takes from around it: globals, closures and attributes, besides its arguments.

A capture burns plain Python values in. Were one rebound later (an annealed ``self.beta``, a global tensor), the
compiled program would be stale; so the values that the code of model and guide can name are noted, and compared
at each call.
"""

from __future__ import annotations

import sysconfig
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LIBRARY_ROOTS = ("torch", "pyro", "numpy", "networkx", "sgc")
_STANDARD = sysconfig.get_path("stdlib")
_MAX_DEPTH = 6


class Environment:
    """A snapshot of the names that model and guide can reach."""

    def __init__(self, *roots: Any) -> None:
        self._seen: set[int] = set()
        self._plain: list[tuple[Any, Any, Any]] = []
        self._identical: list[tuple[Any, Any, Any]] = []
        self._labels: dict[int, str] = {}
        for root in roots:
            self._visit(root, "", 0)
        self._seen.clear()

    def changed(self) -> str | None:
        """The name of a value that is not what it was, None if all are."""
        for mapping, key, expected in self._plain:
            value = _get(mapping, key)
            if value is not expected and not (type(value) is type(expected) and value == expected):
                return self._describe(mapping, key, expected, value)
        for mapping, key, expected in self._identical:
            if _get(mapping, key) is not expected:
                return self._describe(mapping, key, "the object seen at capture", "another object")
        return None

    def __len__(self) -> int:
        return len(self._plain) + len(self._identical)

    def __iter__(self) -> Iterator[str]:
        for mapping, key, expected in self._plain:
            yield f"{self._label(mapping, key)} == {expected!r}"
        for mapping, key, _ in self._identical:
            yield f"{self._label(mapping, key)} is the object seen at capture"

    def _describe(self, mapping: Any, key: Any, expected: Any, value: Any) -> str:
        return f"{self._label(mapping, key)} was {expected}, is {value}"

    def _label(self, mapping: Any, key: Any) -> str:
        prefix = self._labels.get(id(mapping), "")
        return f"{prefix}{key}" if key is not None else prefix

    def _note(self, mapping: Any, key: Any, value: Any, label: str, depth: int) -> None:
        self._labels.setdefault(id(mapping), label)
        if isinstance(value, _PLAIN):
            self._plain.append((mapping, key, value))
        elif isinstance(value, (list, tuple, dict)) and _is_plain(value):
            self._plain.append((mapping, key, value.copy() if isinstance(value, (list, dict)) else value))
        elif isinstance(value, (Tensor, nn.Module)) or callable(value):
            if not isinstance(value, type):
                self._identical.append((mapping, key, value))
        self._visit(value, f"{label}{key or ''}", depth + 1)

    def _visit(self, value: Any, label: str, depth: int) -> None:
        if (
            depth > _MAX_DEPTH
            or id(value) in self._seen
            or isinstance(value, (Tensor, type, types.ModuleType, *_PLAIN))
        ):
            return
        self._seen.add(id(value))
        if isinstance(value, types.MethodType):
            self._visit(value.__func__, label, depth)
            self._visit(value.__self__, label, depth)
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
        elif isinstance(value, (list, tuple)):
            for part in value:
                self._visit(part, f"{label}[...]", depth + 1)
        elif isinstance(value, dict):
            for part in value.values():
                self._visit(part, f"{label}[...]", depth + 1)
        elif hasattr(value, "__dict__") and not _is_library(type(value)):
            for name, part in list(vars(value).items()):
                self._note(vars(value), name, part, f"{type(value).__name__}.", depth)

    def _visit_module(self, module: nn.Module, label: str, depth: int) -> None:
        for name, part in list(vars(module).items()):
            if not name.startswith("_") and name != "training":
                if isinstance(part, (*_PLAIN, Tensor)) or (isinstance(part, (list, tuple, dict)) and _is_plain(part)):
                    self._note(vars(module), name, part, label, depth)
        forward = type(module).forward
        if not _is_library(type(module)) and isinstance(forward, types.FunctionType):
            self._visit(forward, label, depth + 1)

    def _visit_function(self, function: types.FunctionType, depth: int) -> None:
        label = f"{function.__qualname__}: "
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # an empty cell: the name is not bound yet
                continue
            self._note(cell, None, value, f"{label}{name}", depth)
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self._note(function.__globals__, name, function.__globals__[name], label, depth)


def _get(mapping: Any, key: Any) -> Any:
    if key is None:
        return mapping.cell_contents
    return mapping.get(key, _MISSING)


_MISSING = object()


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 64 and all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return len(value) <= 64 and all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return isinstance(value, _PLAIN)


def _is_library(thing: Any) -> bool:
    module = getattr(thing, "__module__", None) or ""
    if module.partition(".")[0] in _LIBRARY_ROOTS:
        return True
    code = getattr(thing, "__code__", None)
    if not isinstance(code, types.CodeType):
        return False
    return code.co_filename.startswith(_STANDARD) and "site-packages" not in code.co_filename
