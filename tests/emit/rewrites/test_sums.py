"""A sum of sums is one sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.emit.rewrites.graphs import apply, lines, results, traced

X = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "total",
    [
        lambda x: [x.exp().sum(-1).sum()],
        lambda x: [x.exp().sum((0, 1)).sum()],
        lambda x: [x.exp().sum(0, keepdim=True).sum(-1).sum()],
    ],
)
def test_sums_of_sums(total: Callable[[Tensor], list[Tensor]]) -> None:
    module = traced(total, X / 10)
    before = results(module, X / 10)
    assert apply("merge_sums", module)
    apply("drop_dead_nodes", module)
    assert sum("sum(" in line for line in lines(module)) == 1
    assert torch.allclose(results(module, X / 10)[0], before[0])


@pytest.mark.parametrize(
    "total",
    [
        lambda x: [x.sum()],
        lambda x: [(rows := x.sum(-1)).sum(), rows * 2],  # the rows are needed
        lambda x: [x.sum(-1, dtype=torch.float64).sum()],
        lambda x: [x.sum(-1).exp().sum()],
        lambda x: [(x > 3).sum(-1).sum()],  # numbers of another type, exact in any order
    ],
)
def test_which_stay(total: Callable[[Tensor], list[Tensor]]) -> None:
    assert not apply("merge_sums", traced(total, X))
