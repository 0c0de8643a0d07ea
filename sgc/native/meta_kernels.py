"""What torch must know of an operator to trace it with symbols for sizes: the shape of its result.

Of four operators torch 2.11 to 2.14 does not know it: with numbers for sizes it runs them on zeros, to see. Their
results are of the shape of their first argument.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LACKING = ("_standard_gamma_grad", "_sample_dirichlet", "_dirichlet_grad", "binomial")


@cache
def register() -> torch.library.Library:
    """Tell torch; what it knows of itself stays. What is returned holds the registrations."""
    library = torch.library.Library("aten", "IMPL")
    for name in LACKING:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, _like_the_first, "Meta")
    return library


def _like_the_first(first: Tensor, *_: object) -> Tensor:
    return torch.empty_like(first, memory_format=torch.contiguous_format)
