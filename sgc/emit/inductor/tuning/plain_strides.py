"""Tells Inductor's loops how far apart the elements are that they read, without simplifying what is simple.

To vectorise a loop Inductor (torch 2.11 to 2.13) asks how each index moves with each variable, for each width that it
considers, and has sympy simplify the index and the difference of two: milliseconds each time, a sixth of the time to
compile a large program. Nearly all indices are sums of variables times numbers: the difference is one of the numbers.
There is no option for it; a function of Inductor's is replaced while a program is generated, and asked for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sympy
from torch.utils._sympy.functions import Identity

from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native.private_attributes import replaced


@contextmanager
def quick_strides() -> Iterator[None]:
    """While this is entered, loops are generated in this way."""

    def with_plain_ones(simplified: Callable[..., Any]) -> Callable[..., Any]:
        def stride_at_vec_range(index: Any, variable: sympy.Symbol, length: int | None = None) -> Any:
            return linear_stride(index, variable) if is_linear(index) else simplified(index, variable, length)

        return stride_at_vec_range

    with replaced({"torch._inductor.codegen.cpp:stride_at_vec_range": with_plain_ones}):
        yield


def is_linear(index: Any) -> bool:
    """Whether an index is a sum of integers times variables, or of such sums that Inductor has marked as one."""
    return isinstance(index, sympy.Expr) and all(map(_is_part, sympy.preorder_traversal(index)))


def _is_part(part: Any) -> bool:
    scaled = part.is_Mul and len(part.args) == 2 and part.args[0].is_Integer
    return scaled or part.is_Integer or part.is_Symbol or part.is_Add or isinstance(part, Identity)


def linear_stride(index: sympy.Expr, variable: sympy.Symbol) -> sympy.Expr:
    """By how much a linear index grows when a variable grows by one: a number, or a difference of marked sums."""
    return index.xreplace({variable: variable + 1}) - index


TUNING = Tuning(
    name="plain_strides",
    what="strides of loops that are sums of variables are told without sympy's simplification",
    faster="compilation",
    patch=quick_strides,
)
