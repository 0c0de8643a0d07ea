"""Names in the program's own code that would compute with traced numbers in C: ``int``, ``float``, ``from math``."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import Tensor

from sgc.capture.python.traced_numbers import MATHEMATICAL, Answers, TracedNumber, recorded_function
from sgc.capture.state.value_parts import MISSING
from sgc.errors import DataDependenceError

_CONVERSIONS: tuple[type, ...] = (int, float)


@contextmanager
def recorded_names(functions: Iterable[FunctionType], answers: Answers) -> Iterator[None]:
    """In the globals of some functions names mean what records numbers while this is entered.

    ``int`` and ``float`` of a traced tensor or number give numbers, where the functions do nothing but call them.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    codes: dict[int, tuple[dict[str, Any], list[CodeType]]] = {}
    for function in functions:
        codes.setdefault(id(function.__globals__), (function.__globals__, []))[1].append(function.__code__)
    for names, of_module in codes.values():
        called = [_uses(code) for code in of_module]
        bound: dict[str, Any] = {}
        for name in frozenset[str]().union(*called):
            value = names.get(name)
            if isinstance(value, BuiltinFunctionType) and value.__module__ == "math" and value.__name__ in MATHEMATICAL:
                bound[name] = recorded_function(value.__name__)
        for kind in _CONVERSIONS:
            name = kind.__name__
            if name not in names and all(uses.get(name, True) for uses in called):
                bound[name] = _conversion(kind, answers)
        for name, value in bound.items():
            replaced.append((names, name, names.get(name, MISSING)))
            names[name] = value
    try:
        yield
    finally:
        for names, name, value in replaced:
            if value is MISSING:
                del names[name]
            else:
                names[name] = value


def _conversion(kind: type, answers: Answers) -> Callable[..., Any]:
    @functools.wraps(kind, updated=())
    def convert(*args: Any, **kwargs: Any) -> Any:
        value = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(value, TracedNumber):
            return answers.converted(value, kind)
        if isinstance(value, Tensor) and answers.is_number(value):
            with suppress(
                DataDependenceError
            ):  # which says more where the tensor itself is asked, or assumes an answer
                return answers.number_of(value, kind)
        return kind(*args, **kwargs)

    return convert


@functools.lru_cache(maxsize=4096)
def _uses(code: CodeType) -> dict[str, bool]:
    """The global names that a function's code, and that of the functions written in it, uses: whether it calls each."""
    found: dict[str, bool] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            # From Python 3.11 on, the lowest bit says that the global is loaded to be called.
            calls = instruction.opname == "LOAD_GLOBAL" and bool((instruction.arg or 0) & 1)
            found[str(instruction.argval)] = found.get(str(instruction.argval), True) and calls
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for name, calls in _uses(constant).items():
                found[name] = found.get(name, True) and calls
    return found
