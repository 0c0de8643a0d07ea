"""Functions of Python's that compute with numbers in C, for traced numbers: those of ``math``, ``min`` and ``max``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgc.tracing.python.traced_numbers import PLAIN_NUMBERS, TRACED, TracedNumber, value_of

_ELEMENTARY: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("exp", "log1p", "log2", "log10", "expm1", "sqrt", "tanh", "sin")},
    **{name: getattr(torch, name) for name in ("cos", "tan", "sinh", "cosh", "atan", "asin", "acos", "lgamma", "erf")},
    "erfc": torch.erfc,
    "log": lambda *parts: _log(*parts),
    "fabs": torch.abs,
    "pow": torch.pow,
    "exp2": torch.exp2,
    "hypot": torch.hypot,
    "atan2": torch.atan2,
    "fmod": torch.fmod,
    "copysign": torch.copysign,
    "degrees": torch.rad2deg,
    "radians": torch.deg2rad,
}

_NEVER_RAISING = frozenset(("fabs", "copysign", "degrees", "radians", "hypot"))

_ROUNDING = frozenset(("floor", "ceil", "trunc"))
"""Functions that ask the number itself."""


def _log(number: Tensor, *base: Tensor) -> Tensor:
    return torch.log(number) / torch.log(base[0]) if base else torch.log(number)


def recorded_function(name: str) -> Callable[..., Any]:
    """A function of the module ``math`` that takes traced numbers."""
    function = getattr(math, name)
    compute = _ELEMENTARY.get(name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        numbers = [part for part in args if isinstance(part, TracedNumber)]
        if not numbers or name in _ROUNDING:
            return function(*args, **kwargs)
        if compute is None or kwargs or not all(isinstance(part, (TracedNumber, *PLAIN_NUMBERS)) for part in args):
            return function(*(part.read() if isinstance(part, TracedNumber) else part for part in args), **kwargs)
        made = numbers[0].answers.result(function(*map(value_of, args)), compute, *args)
        if type(made) in TRACED and name == "log" and len(args) == 2:
            # A quotient: what is wrong with a base does not show in it.
            for part in args:
                of_part = made.answers.result(math.log(value_of(part)), torch.log, part)
                made.answers.require_as_in_c(of_part, (part,), "what math.log is given")
            made.answers.require(of_part.tensor != 0, "the base of math.log")
        elif type(made) in TRACED and name not in _NEVER_RAISING:
            made.answers.require_as_in_c(made, args, f"what math.{name} is given")
        return made

    return call


def recorded_extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    """``min`` or ``max``, of numbers that may be traced."""
    comes_before = torch.lt if function is min else torch.gt

    def compute(best: Tensor, *others: Tensor) -> Tensor:
        for other in others:  # as Python does, which matters for NaN
            best = torch.where(comes_before(other, best), other, best)
        return best

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        numbers = [part for part in args if isinstance(part, TracedNumber)]
        plain = all(isinstance(part, (TracedNumber, int, float)) for part in args)
        if kwargs or len(args) < 2 or not numbers or not plain:
            return function(*args, **kwargs)
        kinds = {type(value_of(part)) for part in args}
        answer = function(*map(value_of, args))
        answer = float(answer) if float in kinds else answer
        return numbers[0].answers.result(answer, compute, *args)

    return call


MATHEMATICAL = tuple(name for name in vars(math) if callable(getattr(math, name)) and not name.startswith("_"))
