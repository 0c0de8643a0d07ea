"""Gives Boolean values one type where Inductor's vectorised C++ chooses between them.

A comparison of float64 or int64 numbers gives a mask of two vectors, one of float32 numbers a mask of one. What is
computed under a condition (an operand of a concatenation that is looked up, what is in front of a padding) is chosen by
``condition ? value : other``, and for Boolean values Inductor (torch 2.11 to 2.14) writes an ``other`` of one vector
beside a value of two, which the compiler refuses. Here such a value is made a mask of one vector before. There is no
option for it: the method that writes the choice is replaced while a program is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private, replaced


@contextmanager
def masks_alike() -> Iterator[None]:
    """While this is entered, loops are generated in this way."""
    unify_mask_base_type = private("torch._inductor.codegen.cpp_utils:unify_mask_base_type")
    virtualized = private("torch._inductor.virtualized:V")

    def with_masks_alike(masked: Callable[..., Any]) -> Callable[..., Any]:
        def masked_alike(mask: Any, body: Callable[[], Any], other: Any) -> Any:
            def value() -> Any:
                result = body()
                if result.dtype is not torch.bool or not result.is_vec:
                    return result
                (mask_of_one,) = unify_mask_base_type(virtualized.kernel.compute, (result,))
                mask_of_one.dtype, mask_of_one.is_vec = torch.bool, True
                mask_of_one.update_on_args("to_dtype", (result,), {})
                return mask_of_one

            return masked(mask, value, other)

        return masked_alike

    with replaced({"torch._inductor.codegen.cpp:CppVecOverrides.masked": with_masks_alike}):
        yield


def _comparisons(x: Tensor) -> list[Tensor]:
    signs = torch.nn.functional.pad(x <= 1, (0, 0, 3, 1), value=False)
    large = torch.ones(100, 100) * x.sum()  # for a small program there are no vectors
    return [torch.where(signs, 1.0, 2.0), signs.any(0), large]


WORKAROUND = Workaround(
    name="boolean_masks",
    defect="Boolean values of float64 or int64 numbers under a condition get two types in C++, which is not compiled",
    reported="docs/upstream.md#boolean-values-under-a-condition",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_comparisons, lambda: [torch.arange(880.0).reshape(20, 44).double() % 5])],
    wrong_without=False,
    patch=lambda module: masks_alike(),
)
