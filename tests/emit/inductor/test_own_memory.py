"""What an operator writes into is not read by the same operator: each value has memory of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.rewrites.optimize import optimize

pytestmark = pytest.mark.inductor

ROWS = torch.tensor([1, 2, 3])
AGAIN = torch.tensor([1, 2, 3, 1])


def written_from_itself(x: Tensor, y: Tensor) -> list[Tensor]:
    """Nobody reads the tensors afterwards: Inductor would write into them."""
    a, b, c, d, e = (x * k @ x for k in range(1, 6))
    whole = torch.slice_scatter(e, torch.cat([e]), 0, 0, 4)
    return [
        a.index_put((ROWS,), a[:3]),
        b.index_add(0, AGAIN, b),
        c.index_copy(0, ROWS, c.clone()[:3]),
        d.index_put((AGAIN,), d, accumulate=True),
        e.index_put((ROWS,), whole[:3]),
    ]


def written_from_an_input(x: Tensor, y: Tensor) -> list[Tensor]:
    x.copy_(x.index_put((ROWS,), x[:3]))
    return []


def a_result_from_an_input(x: Tensor, y: Tensor) -> list[Tensor]:
    """What is copied into the input is laid out in another way, so that it is copied last."""
    changed = torch.select_scatter(x, x[2].sin().flip(-1), 0, 3)
    x.copy_(torch.linalg.cholesky(y @ y.mT + torch.eye(4)).t())
    return [changed]


def a_result_and_a_copy(x: Tensor, y: Tensor) -> list[Tensor]:
    changed = x.index_put((ROWS,), x[:3].sin())
    x.copy_(changed.index_put((ROWS,), changed[:3].cos()))
    return [changed.clone()[1:]]


def a_piece_of_a_concatenation(x: Tensor, y: Tensor) -> list[Tensor]:
    """So many operands that each is computed into its place."""
    piece, other = x.sum(1), y.sum(1)
    whole, stacked = torch.cat([piece, *x, *x, *x]), torch.stack([other, *y, *y, *y])
    return [whole, piece.index_put((ROWS,), x[0, :3]), stacked, other.index_add(0, AGAIN, y[0])]


@torch.library.custom_op("sgc_tests::triple_", mutates_args={"x"})
def triple_(x: Tensor) -> None:
    x.mul_(3)


def somebodys(x: Tensor, y: Tensor) -> list[Tensor]:
    piece, other = x.sin(), y.sin()
    whole = torch.cat([piece, other, *[(x + k).cos() for k in range(9)]])
    copy = other.clone()
    triple_(piece)
    triple_(copy)
    return [whole, piece + 1, copy + 1]


@pytest.mark.parametrize(
    "program",
    [
        written_from_itself,
        written_from_an_input,
        a_result_from_an_input,
        a_result_and_a_copy,
        a_piece_of_a_concatenation,
        somebodys,
    ],
)
def test_what_is_written_is_not_read(program: Callable[[Tensor, Tensor], list[Tensor]]) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(4, 4), torch.rand(4, 4)
    compiled, ours, theirs = compile_graph(trace(program, [x, y]), [x, y], "torch"), x.clone(), x.clone()
    results = compiled(ours, y)
    for found, expected in zip([*results, ours], [*program(theirs, y), theirs], strict=True):
        torch.testing.assert_close(found, expected)
    assert all(found.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr() for found in results)


def test_somebodys_operator_in_a_functional_graph() -> None:
    x, y = torch.rand(4, 4), torch.rand(4, 4)
    module = optimize(trace(somebodys, [x, y]), [x, y]).module
    for found, expected in zip(compile_graph(module, [x, y], "torch")(x, y), somebodys(x, y), strict=True):
        torch.testing.assert_close(found, expected)
