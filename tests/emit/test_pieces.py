"""What is a piece of a concatenation keeps its memory as long as it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sgc.emit import generator
from sgc.emit.differentiate import trace
from sgc.emit.generator import Generator
from sgc.emit.inductor import compile_graph

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


def test_another_generator_has_another_key(monkeypatch: Any, tmp_path: Path) -> None:
    before = Generator().uuid()
    changed = tmp_path / "pieces.py"
    changed.write_text(Path(generator._SOURCES[0]).read_text() + "\n")
    monkeypatch.setattr(generator, "_SOURCES", (str(changed), *generator._SOURCES[1:]))
    assert Generator().uuid() != before
