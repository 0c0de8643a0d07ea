"""Sums and differences with an ``alpha`` are those of torch under Inductor, beside a product of matrices too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sgc.emit.backends.registry import build
from sgc.emit.inductor.workarounds.scaled_sums import multiply_apart
from sgc.emit.rewrites.optimize import optimize
from tests.emit.rewrites.graphs import traced

A, B, C = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(3, 4) - 5, torch.arange(4.0)
COUNTS = torch.arange(8).reshape(2, 4)

SUMS: dict[str, Callable[..., Tensor]] = {
    "a product and a multiple": lambda a, b, c, n: torch.add(a @ b, c, alpha=0.5),
    "a number and a multiple of a product": lambda a, b, c, n: torch.add(c, a @ b, alpha=3),
    "less a multiple": lambda a, b, c, n: torch.sub(a @ b, c, alpha=0.5),
    "integers": lambda a, b, c, n: torch.add(n, n[0], alpha=3),
    "a multiple of integers": lambda a, b, c, n: torch.add((a @ b).double(), n, alpha=1 / 3),
    "in place": lambda a, b, c, n: (a @ b).add_(c, alpha=-2.0),
}


@pytest.mark.parametrize("sum_of", SUMS.values(), ids=SUMS.keys())
def test_they_are_written_as_products_and_sums(sum_of: Callable[..., Tensor]) -> None:
    inputs = A, B, C, COUNTS
    module = optimize(traced(lambda *inputs: [sum_of(*inputs)], *inputs), inputs).module
    multiply_apart(module)
    assert "alpha" not in module.code
    (found,) = module(*inputs)
    expected = sum_of(*inputs)
    assert found.dtype is expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-12 if found.dtype is torch.float64 else 1e-6, atol=0)


@pytest.mark.inductor
def test_inductor_overlooks_none() -> None:
    inputs = A, B, C, COUNTS
    # A product for each: one that several use is no part of another call.
    module = traced(lambda a, *rest: [sum_of(a + i, *rest) for i, sum_of in enumerate(SUMS.values())], *inputs)
    compiled = build(module, inputs, "inductor", "torch").run
    for found, expected in zip(compiled(*inputs), module(*inputs), strict=True):
        torch.testing.assert_close(found, expected)
