"""Sizes that differ from call to call, as the graph shows them and counts with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch


class Size(int):
    """A size that differs from call to call: the number that it was during the capture, shown by its formula.

    Two sizes are equal if these numbers are. What is decided so for the graph is decided again, of the formulas, by
    torch where the graph is differentiated, and guarded there.
    """

    formula: str

    def __new__(cls, number: int, formula: str) -> Size:
        size = super().__new__(cls, number)
        size.formula = formula
        return size

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.formula

    def __repr__(self) -> str:
        return self.formula

    __str__ = __repr__


_NAMES: WeakKeyDictionary[Any, Mapping[Any, Any]] = WeakKeyDictionary()


def name_symbols(environment: Any, names: Mapping[Any, Any]) -> None:
    """Say by which symbols those of an environment of torch's (``ShapeEnv``) are shown."""
    _NAMES[environment] = names


def shown(expression: Any, environment: Any) -> str:
    """A formula of an environment's symbols, in the names that these are shown by."""
    return str(_renamed(expression, environment))


def _renamed(expression: Any, environment: Any) -> Any:
    return expression.xreplace(_NAMES.get(environment, {}))


def size_of(size: Any) -> Any:
    """A size of a traced tensor as a :class:`Size`; one that is a number, or that no number is known for, as it is."""
    if not isinstance(size, torch.SymInt):
        return size
    node = size.node
    number, expression = node.hint, node.expr
    if number is None:  # it depends on data
        return size
    if not expression.free_symbols:
        return int(number)
    return Size(number, shown(expression, node.shape_env))


def formula_of(value: Any) -> str:
    """A number of torch's that depends on sizes, as a formula of these; ``1`` for what is always one."""
    return str(_plain(_renamed(value.node.expr, value.node.shape_env)))


def condition_shown(condition: Any, environment: Any) -> str:
    """A condition on an environment's symbols, as it is written in Python."""
    from sympy.core.relational import Relational

    renamed = _renamed(condition, environment)
    if not isinstance(renamed, Relational):
        return str(renamed)
    return f"{_plain(renamed.lhs)} {renamed.rel_op} {_plain(renamed.rhs)}"


def _plain(expression: Any) -> Any:
    """A formula with quotients of its own in the place of torch's functions, and whole numbers for floats that are."""
    from sympy import nsimplify
    from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat

    for function, plain in ((ToFloat, lambda a: a), (FloatTrueDiv, _quotient), (IntTrueDiv, _quotient)):
        expression = expression.replace(function, plain)
    return nsimplify(expression, rational=True)


def _quotient(one: Any, other: Any) -> Any:
    return one / other


def shape_of(sizes: Iterable[Any]) -> tuple[Any, ...]:
    """A shape of such sizes."""
    return tuple(map(size_of, sizes))


def is_symbolic(value: Any) -> bool:
    """Whether a value is a number of torch's that is a formula (``SymInt``, ``SymFloat``, ``SymBool``)."""
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def is_formula(value: Any) -> bool:
    """Whether it is a number of torch's that is a formula of sizes, and is known for those of the capture."""
    return isinstance(value, (torch.SymInt, torch.SymFloat)) and value.node.hint is not None


def is_sized_by_call(tensor: torch.Tensor) -> bool:
    """Whether a traced tensor has a size that differs from call to call."""
    return tensor.layout is torch.strided and any(isinstance(size_of(size), Size) for size in tensor.shape)
