"""Arithmetic that changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

X = torch.tensor([[1.0, -0.0, float("inf")], [0.0, -2.5, float("nan")]])

REMOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "times one": lambda x: x * 1.0,
    "one times": lambda x: torch.full((), 1.0) * x,
    "over one": lambda x: x / 1.0,
    "plus minus zero": lambda x: x + -0.0,
    "minus zero": lambda x: x - 0.0,
    "to the one": lambda x: x.pow(1.0),
    "minus minus": lambda x: x.neg().neg(),
    "expand": lambda x: x.expand(2, 3),
    "view": lambda x: x.view(2, 3),
    "permute": lambda x: x.permute(0, 1),
    "slice": lambda x: torch.ops.aten.slice.Tensor(x, 1, 0, 3),
    "clone": lambda x: x.clone(),
    "a literal one": lambda x: x * torch.tensor(1.0),
    "a view of a view": lambda x: x.view(3, 2).view(6).view(2, 3),
    "rows written back": lambda x: torch.slice_scatter(x, x[1:], 0, 1, 9223372036854775807),
    "a row written back": lambda x: torch.select_scatter(x, x.select(1, 2), 1, 2),
    "a diagonal written back": lambda x: torch.diagonal_scatter(x, x.diagonal(1).clone(), 1),
    "written back into a view": lambda x: torch.slice_scatter(
        x.view(6), torch.ops.aten.slice.Tensor(x.view(6), 0, 0, 6, 2), 0, 0, 6, 2
    ).view(2, 3),
}


@pytest.mark.parametrize("rule", REMOVED)
def test_removed(rule: str) -> None:
    module = traced(lambda x: [REMOVED[rule](x).sin()], X)
    before = results(module, X)
    assert apply("remove_identities", module)
    apply("drop_dead_nodes", module)
    assert lines(module) == ["sin = sin(x0)", "return [sin]"]
    assert equal(results(module, X), before)


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "plus zero turns -0.0 into 0.0": lambda x: x + 0.0,
    "minus minus zero too": lambda x: x - -0.0,
    "times zero": lambda x: x * 0.0,
    "zero minus": lambda x: 0.0 - x,
    "one to the": lambda x: 1.0**x,
    "other rows written": lambda x: torch.slice_scatter(x, x[:1], 0, 1, 2),
    "rows written of something else": lambda x: torch.slice_scatter(x, x.exp()[1:], 0, 1, 2),
    "a view of a part": lambda x: x.view(6)[:3].view(1, 3),
    "another shape": lambda x: x * torch.ones(2, 2, 1),
    "another dtype": lambda x: x * torch.ones((2, 3), dtype=torch.float64),
    "other strides": lambda x: x.t().contiguous(),
    "transposed": lambda x: x.t(),
    "sum of two": lambda x: x.sum(0),
    "a part": lambda x: x[:, 1:],
}


@pytest.mark.parametrize("rule", KEPT)
def test_kept(rule: str) -> None:
    module = traced(lambda x: [KEPT[rule](x).sin()], X)
    assert not apply("remove_identities", module)


def test_minus_one() -> None:
    module = traced(lambda x: [(x * -1.0).sin(), (x / -1.0).cos()], X)
    before = results(module, X[:, :2])
    assert apply("remove_identities", module)
    assert lines(module) == [
        "neg = neg(x0)",
        "sin = sin(neg)",
        "neg_1 = neg(x0)",
        "cos = cos(neg_1)",
        "return [sin, cos]",
    ]
    assert equal(results(module, X[:, :2]), before)


def test_sums_of_one_element() -> None:
    y = torch.tensor([[2.0], [-3.0]])

    def f(x: Tensor) -> list[Tensor]:
        total = x[0, 0].sum()
        return [x.sum(1).sin(), x.sum(1, keepdim=True).cos(), total.exp()]

    module = traced(f, y)
    before = results(module, y)
    assert apply("remove_identities", module)
    assert [line for line in lines(module) if "sum" in line] == []
    assert "view = view(x0, [2])" in lines(module) and "cos = cos(x0)" in lines(module)
    assert equal(results(module, y), before)


def test_integers() -> None:
    n = torch.tensor([3, -4])
    module = traced(lambda x: [(x + 0).abs(), (x * 1).neg(), (x / 1).sin()], n)
    assert apply("remove_identities", module)
    assert lines(module)[:3] == ["abs_1 = abs(x0)", "neg = neg(x0)", "div = div.Tensor(x0, 1)"]


def test_a_result_never_becomes_an_input_or_another_result() -> None:
    """Neither may a copy into an input: the copies happen one after another."""

    def swap(x: Tensor, y: Tensor) -> list[Tensor]:
        new_x, new_y = y * 1.0, x * 1.0
        e = x.exp()
        x.copy_(new_x)
        y.copy_(new_y)
        return [x.clone(), e, e.clone()]

    module = traced(swap, X, X + 1)
    apply("functionalise", module)
    before = results(module, X, X + 1)
    apply("remove_identities", module)
    assert equal(results(module, X, X + 1), before)
    returned = results(module, X, X + 1)
    assert len({tensor.data_ptr() for tensor in returned}) == len(returned)
