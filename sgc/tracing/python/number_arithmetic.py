"""Python's operators on numbers as operations on 0-d tensors of float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _divide(one: Tensor, other: Tensor) -> Tensor:
    return one.double() / other.double()


def _power(one: Tensor, other: Tensor) -> Tensor:
    return one.double() ** other.double()


def _modulo(one: Tensor, other: Tensor) -> Tensor:
    """As Python does; Inductor's floor division and remainder round a quotient first, and differ where it is whole."""
    rest = torch.fmod(one, other)
    rest = torch.where(rest == 0, torch.copysign(torch.zeros_like(rest), other), rest)
    return torch.where(rest * torch.sign(other) < 0, rest + other, rest)


def _floor_divide(one: Tensor, other: Tensor) -> Tensor:
    return torch.round((one - _modulo(one, other)) / other)


ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": _divide,
    "floordiv": _floor_divide,
    "mod": _modulo,
    "pow": _power,
}
