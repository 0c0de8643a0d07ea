"""What is a piece of a concatenation keeps its memory as long as it is needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.rewrites.optimize import optimize

pytestmark = pytest.mark.inductor


def view_of_a_piece(x: Tensor, w: Tensor) -> list[Tensor]:
    pieces = [x[:, :, k].sin() for k in range(10)]
    y = torch.cat(pieces, 0) @ w
    z = (y @ w).exp() @ w
    return [z.sum(), pieces[3][1:], (z * 2).cos().sum()]


@pytest.mark.parametrize("in_one_piece", [False, True])
@pytest.mark.parametrize("size", [4, 64])
def test_a_view_of_a_piece_is_a_result(size: int, in_one_piece: bool) -> None:
    torch.manual_seed(0)
    x, w = torch.rand(size, size, 10) / 9, torch.rand(size, size) / size
    compiled = compile_graph(trace(view_of_a_piece, [x, w]), [x, w], "torch", in_one_piece=in_one_piece)
    for ours, expected in zip(compiled(x, w), view_of_a_piece(x, w), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_row_of_a_packet_is_a_result() -> None:
    """As small operators are batched: the rows of two packets are concatenated, and one of them is returned."""

    def program(x: Tensor, w: Tensor) -> list[Tensor]:
        rows, more = [x[t].exp() for t in range(12)], [x[t].sin() for t in range(12)]
        y = torch.stack(rows + more + [row.cos() for row in rows]) @ w
        z = (y @ w).exp() @ w
        return [z.sum(), rows[3], (z * 2).cos().sum()]

    torch.manual_seed(0)
    x, w = torch.rand(12, 200), torch.rand(200, 200) / 200
    module = optimize(trace(program, [x, w]), [x, w]).module
    for ours, expected in zip(compile_graph(module, [x, w], "torch")(x, w), program(x, w), strict=True):
        torch.testing.assert_close(ours, expected)
