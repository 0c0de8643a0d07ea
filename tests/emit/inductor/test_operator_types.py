"""Inductor's table of operators' types is filled once for a program, and programs are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import dtype_propagation
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.native.switches import without

pytestmark = pytest.mark.inductor
X = torch.linspace(-1.0, 2.0, 50)


def program(x: Tensor) -> list[Tensor]:
    whole = x.to(torch.int64)
    return [((x.double().sin() > 0) & (whole > 1)).sum(), (x * whole).exp().half().float() + 1.0]


def kernels(folder: str) -> list[str]:
    """The generated kernels in a cache of Inductor's."""
    return sorted(path.read_text() for path in Path(folder).rglob("*.optimized.cpp"))


def test_the_table_is_filled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fills: list[Any] = []
    fill = dtype_propagation.DtypePropagationOpsHandler.__init__

    def count(self: Any) -> None:
        fills.append(self)
        fill(self)

    monkeypatch.setattr(dtype_propagation.DtypePropagationOpsHandler, "__init__", count)
    texts, results = [], []
    for off in ((), ("operator_types",)):
        fills.clear()
        with fresh_cache(), without(*off):
            run = compile_graph(trace(program, [X]), [X], "fast")
            results.append(run(X))
            texts.append(kernels(cache_dir()))
        assert len(fills) == 1 if not off else len(fills) > 5
    assert texts[0] and texts[0] == texts[1]
    assert all(map(torch.equal, *results))
