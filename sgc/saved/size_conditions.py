"""What is asked of sizes that differ from call to call: formulas of torch's, as data, and their values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import ceil, floor, prod
from typing import Any

_LARGEST_POWER = 16

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda *parts: sum(parts),
    "Mul": lambda *parts: prod(parts),
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "Rational": operator.truediv,
    "ToFloat": float,
    "CeilToInt": ceil,
    "FloorToInt": floor,
    "Equality": operator.eq,
    "Unequality": operator.ne,
    "StrictLessThan": operator.lt,
    "LessThan": operator.le,
    "StrictGreaterThan": operator.gt,
    "GreaterThan": operator.ge,
    "And": lambda *parts: all(parts),
    "Or": lambda *parts: any(parts),
    "Not": operator.not_,
}


def formula_as_data(formula: Any, symbols: Sequence[Any]) -> Any:
    """A formula of sympy's; its symbols become ``["size", position]``.

    :raises ValueError: if it has something else than arithmetic and comparisons.
    """
    if isinstance(formula, int):
        return formula
    if formula in symbols:
        return ["size", symbols.index(formula)]
    if formula.is_Boolean and formula in (True, False):
        return bool(formula)
    if formula.is_Integer:
        return int(formula)
    if formula.is_Rational:
        return ["Rational", int(formula.p), int(formula.q)]
    if formula.is_Float:
        return float(formula)
    name = formula.func.__name__
    if name == "Pow" and formula.args[1].is_Integer and 0 < int(formula.args[1]) <= _LARGEST_POWER:
        return ["Mul", *[formula_as_data(formula.args[0], symbols)] * int(formula.args[1])]
    if name not in _FUNCTIONS:
        raise ValueError(f"{formula} is neither arithmetic nor a comparison")
    return [name, *(formula_as_data(argument, symbols) for argument in formula.args)]


def value_of_formula(data: Any, sizes: Sequence[int]) -> Any:
    """The value of a formula, for these sizes.

    :raises ValueError: if it is none.
    """
    if isinstance(data, (bool, int, float)):
        return data
    name, *parts = data
    if name == "size":
        return sizes[parts[0]]
    if name not in _FUNCTIONS:
        raise ValueError(f"no formula has {name!r}")
    return _FUNCTIONS[name](*(value_of_formula(part, sizes) for part in parts))


def check_formula(data: Any, count: int) -> None:
    """Check a formula of a file: it is one, of so many sizes.

    :raises ValueError: if not.
    """
    if isinstance(data, (bool, int, float)):
        return
    name, *parts = data
    if name == "size":
        if len(parts) != 1 or type(parts[0]) is not int or not 0 <= parts[0] < count:
            raise ValueError("a formula of a size that is not there")
        return
    if name not in _FUNCTIONS or not parts:
        raise ValueError(f"no formula has {name!r}")
    for part in parts:
        check_formula(part, count)
