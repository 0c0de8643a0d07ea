"""What reads a tensor comes after the operator that writes into it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch.nn import functional as F

from sgc.emit.backends.registry import build
from tests.emit.rewrites.graphs import traced

X = torch.linspace(-1, 1, 20).reshape(5, 4)


@torch.library.custom_op("sgc_tests::double_", mutates_args={"x"})
def double_(x: Tensor) -> None:
    x.mul_(2)


def dropout(weights: Tensor) -> Tensor:
    return F.dropout(weights, 0.1)


def bernoulli(weights: Tensor) -> Tensor:
    return weights * torch.empty_like(weights).bernoulli_(0.9)


def somebodys(weights: Tensor) -> Tensor:
    """An operator that Inductor calls as it is."""
    factors = torch.full_like(weights, 0.5)
    double_(factors)
    return weights * (factors + 1)


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("change", [dropout, bernoulli, somebodys])
def test_readers_of_what_is_written_in_place(change: Callable[[Tensor], Tensor]) -> None:
    """The weights are laid out anew, to be computed together with what reads the factors."""

    def attention(x: Tensor) -> list[Tensor]:
        scale = torch.randn(())
        weights = torch.softmax(x @ x.mT, -1)
        return [change(weights) @ x * scale, weights]

    module = traced(attention, X)
    torch.manual_seed(0)
    expected = module(X)
    with inductor_config.patch(force_disable_caches=True):
        compiled = build(module, [X], "inductor", "torch").run
    torch.manual_seed(0)
    for ours, theirs in zip(compiled(X), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def a_row_into_rows(x: Tensor) -> list[Tensor]:
    x.copy_(torch.slice_scatter(x, (x[0] * 2).expand(3, 4), 0, 0, 3))
    return []


def rows_the_other_way_round(x: Tensor) -> list[Tensor]:
    x.copy_(torch.slice_scatter(x, (x.flip(0) * 2)[:3], 0, 1))
    return []


def rows_from_columns(x: Tensor) -> list[Tensor]:
    x.copy_(torch.slice_scatter(x, x.sin().t()[:3], 0, 1))
    return []


def rolled(x: Tensor) -> list[Tensor]:
    x.copy_(torch.slice_scatter(x, x.roll(1, 0)[:3], 0, 1))
    return [x.sum()]


def where_it_says_itself(x: Tensor) -> list[Tensor]:
    v = torch.cumsum(x, 0)
    return [v.index_put(((v[:, 0] * 3).long() % 4,), 0.5 * v, accumulate=True)]


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize(
    "change", [a_row_into_rows, rows_the_other_way_round, rows_from_columns, rolled, where_it_says_itself]
)
def test_what_is_written_is_computed_before(change: Callable[[Tensor], list[Tensor]]) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 4)
    compiled, ours, theirs = build(traced(change, x), [x], "inductor", "torch").run, x.clone(), x.clone()
    for found, expected in zip([*compiled(ours), ours], [*change(theirs), theirs], strict=True):
        torch.testing.assert_close(found, expected)
