"""What is a piece of a concatenation keeps its memory as long as it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sgc.emit.differentiate import trace
from sgc.emit.inductor import cache_key
from sgc.emit.inductor.cache_key import Generator
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.rewrites.optimize import optimize

pytestmark = pytest.mark.inductor


def program(x: Tensor, w: Tensor) -> list[Tensor]:
    """``c`` reads the concatenation last, by one of its pieces, and is needed after as much memory is asked for."""
    pieces = [x[:, :, k].sin() for k in range(10)]
    y = torch.cat(pieces, 0) @ w
    c = pieces[3] * y[:64]
    d = (c @ w).repeat(10, 1) + y
    e = d @ w
    return [c @ e[:64]]


def test_a_piece_is_not_written_over() -> None:
    torch.manual_seed(0)
    x, w = torch.rand(64, 64, 10) / 9, torch.rand(64, 64) / 64
    (found,) = compile_graph(trace(program, [x, w]), [x, w], "torch")(x, w)
    (expected,) = program(x, w)
    assert torch.allclose(found, expected, rtol=1e-4)


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


def test_a_piece_that_is_written_into_is_read_after_the_whole() -> None:
    def program(x: Tensor) -> list[Tensor]:
        piece = x.index_put((torch.tensor([1, 2, 3, 1]),), x[:4], accumulate=True)
        y = (torch.cat([piece, *[(x + k).sin() for k in range(9)]]) @ x @ x).cumsum(0) @ x
        return [y, piece * y[:48]]

    torch.manual_seed(0)
    x = torch.rand(48, 48) / 48
    for ours, expected in zip(compile_graph(trace(program, [x]), [x], "torch")(x), program(x), strict=True):
        torch.testing.assert_close(ours, expected)


def test_another_generator_has_another_key(monkeypatch: Any, tmp_path: Path) -> None:
    before = Generator().uuid()
    changed = tmp_path / "pieces.py"
    changed.write_text(Path(cache_key._SOURCES[0]).read_text() + "\n")
    monkeypatch.setattr(cache_key, "_SOURCES", (str(changed), *cache_key._SOURCES[1:]))
    assert Generator().uuid() != before
