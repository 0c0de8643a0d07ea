"""Names in the program's own code that would see traced numbers in C: ``int``, ``float``, ``type``, ``from math``."""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import Tensor

from sgc.errors import CaptureError, DataDependenceError
from sgc.tracing.python.recorded_functions import MATHEMATICAL, recorded_function
from sgc.tracing.python.traced_numbers import Answers, TracedNumber
from sgc.tracing.state.value_parts import MISSING

_CONVERSIONS: tuple[type, ...] = (int, float)


@contextmanager
def recorded_names(functions: Iterable[FunctionType], answers: Answers) -> Iterator[None]:
    """In the globals of some functions names mean what records numbers while this is entered.

    ``int`` and ``float`` of a traced tensor or number give numbers, ``type`` of one is Python's, where the code of a
    module does nothing but call them.

    :raises CaptureError: if a function asks for a type, and its module uses ``type`` otherwise.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    codes: dict[int, tuple[dict[str, Any], list[CodeType]]] = {}
    for function in functions:
        codes.setdefault(id(function.__globals__), (function.__globals__, []))[1].append(function.__code__)
    try:
        for names, of_module in codes.values():
            for name, value in _replacements(names, of_module, answers).items():
                replaced.append((names, name, names.get(name, MISSING)))
                names[name] = value
        yield
    finally:
        for names, name, value in reversed(replaced):
            if value is MISSING:
                names.pop(name, None)
            else:
                names[name] = value


def _replacements(names: dict[str, Any], codes: list[CodeType], answers: Answers) -> dict[str, Any]:
    """What names of a module are to mean for the code of some functions in it."""
    used = frozenset[str]().union(*map(_uses, codes))
    replacements: dict[str, Any] = {}
    for name in used:
        value = names.get(name)
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "math" and value.__name__ in MATHEMATICAL:
            replacements[name] = recorded_function(value.__name__)
    # Another thread, or a function that is called by a computed name, may run any code of the module meanwhile.
    of_module = [_uses(code) for code in (*codes, *_codes_of(names))]
    for kind in (*_CONVERSIONS, type):
        name = kind.__name__
        if name not in used or name in names:
            continue
        if all(uses.get(name, True) for uses in of_module):
            replacements[name] = _type_of if kind is type else _conversion(kind, answers)
        elif kind is type:
            raise CaptureError("the program asks for types in a module that uses the name otherwise, too")
    return replacements


def _codes_of(names: dict[str, Any]) -> Iterator[CodeType]:
    """The code of the functions and methods of a module."""
    for value in list(names.values()):
        for part in list(vars(value).values()) if isinstance(value, type) else (value,):
            function = part
            if isinstance(part, (staticmethod, classmethod)):
                function = part.__func__
            elif isinstance(part, property):
                function = part.fget
            if isinstance(function, FunctionType) and function.__globals__ is names:
                yield function.__code__


def _type_of(*args: Any, **kwargs: Any) -> Any:
    if len(args) == 1 and isinstance(args[0], TracedNumber):
        return type(args[0].value)
    return type(*args, **kwargs)


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
    called: dict[str, bool] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            # From Python 3.11 on, the lowest bit says that the global is loaded to be called.
            calls = instruction.opname == "LOAD_GLOBAL" and bool((instruction.arg or 0) & 1)
            called[str(instruction.argval)] = called.get(str(instruction.argval), True) and calls
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for name, calls in _uses(constant).items():
                called[name] = called.get(name, True) and calls
    return called
