"""Numbers that change from call to call, where Python or C looks into them: Pyro's losses and gradients, or errors."""

from __future__ import annotations

import decimal
import math
import types
from collections.abc import Callable
from math import exp
from typing import Any

import numpy as np
import pytest

import sgc
from sgc.tracing.python.recorded_names import recorded_names
from tests.guards.test_moving_numbers import NUMBERS, compare, guide, observe

ANSWERS: dict[str, Callable[[Any], Any]] = {
    "a method of floats": lambda a: a.is_integer(),
    "a text in C": lambda a: "%.1f" % a == "1.0",  # noqa: UP031
    "numpy's comparison": lambda a: np.isclose(a, 1.0),
    "an array": lambda a: (np.array([a]) == 1.0).any(),
    "a number of numpy's": lambda a: np.float64(a) == 1.0,
    "a decimal": lambda a: decimal.Decimal(a) == 1,
    "a binary search": lambda a: np.searchsorted([0.5, 0.9], a) < 2,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_what_c_reads_of_a_number_is_guarded(answer: Callable[[Any], Any]) -> None:
    def model(a: float) -> None:
        observe(0.5 if answer(a) else 2.0)

    module = sgc.compile(model, guide, backend="eager")
    for a in (1.9, 0.7, 0.3, 1.0, 0.25, 2.0):
        compare(module, model, a)


def by_match(a: Any) -> Any:
    match a:
        case float():
            return a
        case int():
            return a * a


KINDS: dict[str, Callable[[Any], Any]] = {
    "isinstance of float": lambda a: 2 * a if isinstance(a, float) else a * a,
    "isinstance of int": lambda a: a * a if isinstance(a, int) else 2 * a,
    "type": lambda a: 2 * a if type(a) is float else a * a,
    "type in a set": lambda a: a * a if type(a) in {int} else 2 * a,
    "match": by_match,
    "kinds of numpy's": lambda a: 2 * a if isinstance(a, np.floating) else a * a,
}


@pytest.mark.parametrize("use", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", [int, float, np.float64])
def test_the_kind_of_a_number(use: Callable[[Any], Any], kind: type) -> None:
    def model(a: Any) -> None:
        observe(use(a))

    module = sgc.compile(model, guide, backend="eager")
    for a in (0, 2, 1, 3, 5):  # at 2 the branches agree, as at 0
        compare(module, model, kind(a))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_division_and_remainder_are_pythons(backend: Any) -> None:
    def model(a: float, n: int) -> None:
        observe(1.0 // a + 1.0 % a + (-a) % 0.3 - (-n) // 3 + n % 4 - (-n) % 4, 1.0 + n**9 * 1e-18)

    module = sgc.compile(model, guide, backend=backend)
    for a, n in ((0.3, 1), (0.25, 2), (0.1, 1000), (0.7, 7), (1.9, 4), (-0.2, 6)):
        compare(module, model, a, n)
    assert len(module.specializations) == 2, module.misses()


@pytest.mark.parametrize(
    ("compute", "last", "error"),
    [
        (lambda a: math.exp(-1 / a), 0.0, ZeroDivisionError),
        (lambda a: 1 / (1 + abs(math.log(a))), 0.0, ValueError),
        (lambda a: 1 / (1 + math.exp(a)), 1000.0, OverflowError),
        (lambda a: 1 / (1 + 2.0**a), 2000.0, OverflowError),
        (lambda a: min(1, math.floor(a)), math.inf, OverflowError),
    ],
)
def test_where_python_raises_an_error(compute: Callable[[float], float], last: float, error: type) -> None:
    def model(a: float) -> None:
        observe(compute(a))

    module = sgc.compile(model, guide, backend="eager")
    for a in (3.0, 2.0, 1.0):
        compare(module, model, a)
    with pytest.raises(error):
        module(last)
    compare(module, model, 4.0)


def test_nan_in_extremes() -> None:
    def model(a: float) -> None:
        observe(min(1.0, a) + max(0.5, a))

    module = sgc.compile(model, guide, backend="eager")
    for a in (3.0, 0.2, 0.3, math.nan, 4.0):
        compare(module, model, a)
    assert len(module.specializations) == 2, module.misses()


def test_numbers_of_a_namespace() -> None:
    options = types.SimpleNamespace(rate=0.1)

    def model() -> None:
        observe(options.rate)

    module = sgc.compile(model, guide, backend="eager")
    for a in NUMBERS:
        options.rate = a
        compare(module, model)
    assert len(module.specializations) == 2, module.misses()


class Refusing(dict[str, float]):
    """It raises another error than ``AttributeError`` where it is asked for an attribute."""

    __getattr__ = dict.__getitem__  # type: ignore[assignment]


REFUSING = Refusing()


def test_names_mean_what_they_did_after_an_interrupt() -> None:
    def computed(a: float) -> float:
        return exp(a)

    answers: Any = None
    with pytest.raises(KeyboardInterrupt), recorded_names([computed], answers):  # type: ignore[list-item]
        assert isinstance(exp, types.FunctionType)
        raise KeyboardInterrupt
    assert exp is math.exp
    assert isinstance(exp, types.BuiltinFunctionType)
