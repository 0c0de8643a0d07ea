"""Gives Boolean values one type where Inductor's vectorised C++ chooses between them.

A comparison of float64 or int64 numbers gives a mask of two vectors, one of float32 numbers a mask of one. What is
computed under a condition (an operand of a concatenation that is looked up, what is in front of a padding) is chosen by
``condition ? value : other``, and for Boolean values Inductor (torch 2.11 to 2.13) writes an ``other`` of one vector
beside a value of two, which the compiler refuses. Here such a value is made a mask of one vector before. There is no
option for it: the method that writes the choice is replaced while a program is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


@contextmanager
def masks_alike() -> Iterator[None]:
    """While this is entered, loops are generated in this way."""
    from torch._inductor.codegen.cpp import CppVecOverrides
    from torch._inductor.codegen.cpp_utils import unify_mask_base_type
    from torch._inductor.virtualized import V

    masked = CppVecOverrides.masked

    def masked_alike(mask: Any, body: Callable[[], Any], other: Any) -> Any:
        def value() -> Any:
            result = body()
            if result.dtype is not torch.bool or not result.is_vec:
                return result
            (mask_of_one,) = unify_mask_base_type(V.kernel.compute, (result,))
            mask_of_one.dtype, mask_of_one.is_vec = torch.bool, True
            mask_of_one.update_on_args("to_dtype", (result,), {})
            return mask_of_one

        return masked(mask, value, other)

    with mock.patch.object(CppVecOverrides, "masked", staticmethod(masked_alike)):
        yield
