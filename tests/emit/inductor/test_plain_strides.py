"""Strides without sympy's simplification are those that Inductor finds with it."""

from __future__ import annotations

import pytest
import sympy
from torch._inductor.codegen import cpp
from torch.utils._sympy.functions import FloorDiv, Identity, ModularIndexing

from sgc.emit.inductor.tuning.plain_strides import is_linear, linear_stride, quick_strides

X, Y = sympy.symbols("x y", integer=True, nonnegative=True)


@pytest.mark.parametrize(
    "index",
    [
        *(X, Y, 3 * X, X + 16 * Y, 7 + X - 2 * Y, sympy.Integer(5), sympy.Integer(0), 16 * (X + 4 * Y), 2 * (3 * X)),
        *(Identity(X), Identity(12 * X + Y - 12), Y + Identity(X - 9), 12 * Identity(X + Y), Identity(Y + 3) + X),
    ],
)
@pytest.mark.parametrize("width", [None, 8, 16])
def test_sums(index: sympy.Expr, width: int | None) -> None:
    assert is_linear(index)
    for variable in (X, Y):
        assert linear_stride(index, variable) == cpp.stride_at_vec_range(index, variable, width)


@pytest.mark.parametrize(
    "index",
    [X * Y, X**2, FloorDiv(X, 2), ModularIndexing(X, 1, 16) + Y, X / 2, sympy.Max(X, Y), 3, X >= 1, Identity(X * Y)],
)
def test_others_are_left_to_inductor(index: object) -> None:
    assert not is_linear(index)


def test_while_a_program_is_generated() -> None:
    with quick_strides():
        assert cpp.stride_at_vec_range(ModularIndexing(X, 1, 16), X, 16) == 1
        assert cpp.stride_at_vec_range(3 * X + Y, X, 16) == 3
