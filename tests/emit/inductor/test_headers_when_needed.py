"""No header is looked at for a program that lies compiled in Inductor's cache, unless a part of it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import codecache
from torch._inductor.utils import clear_caches, fresh_cache

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.tuning.headers_when_needed import is_built
from sgc.native.switches import without

pytestmark = pytest.mark.inductor
X = torch.linspace(-1.0, 2.0, 50)


def program(x: Tensor) -> list[Tensor]:
    return [(x.sin() * 2.0).sum(), x.exp() + 1.0]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The headers that were looked at, in a fresh cache."""
    headers: list[str] = []
    precompile = codecache._precompile_header

    def note(header: str, *options: Any, **named: Any) -> str:
        headers.append(header)
        return precompile(header, *options, **named)

    monkeypatch.setattr(codecache, "_precompile_header", note)
    with fresh_cache():
        yield headers


def run_again() -> list[Tensor]:
    """What the program gives, compiled as in a new process: from what is on the disk."""
    clear_caches()
    return list(compile_graph(trace(program, [X]), [X], "fast")(X))


def test_what_is_compiled_needs_no_header(looked_at: list[str]) -> None:
    first = run_again()
    assert len(looked_at) == 2
    assert all(map(torch.equal, run_again(), first))
    assert len(looked_at) == 2
    with without("headers_when_needed"):
        run_again()
    assert len(looked_at) > 2


def test_what_is_compiled_again_needs_them(looked_at: list[str]) -> None:
    first = run_again()
    folder = Path(codecache.cache_dir())
    (library,) = [path for path in folder.rglob("*.main.so") if path.with_suffix(".o").exists()]
    library.unlink()
    assert all(map(torch.equal, run_again(), first))
    assert len(looked_at) == 4


def test_a_program_is_built_if_all_its_parts_are_there(tmp_path: Path) -> None:
    main, kernels = tmp_path / "a.main.cpp", tmp_path / "elsewhere" / "b.optimized.cpp"
    sources = {"main.cpp": main, "optimized.cpp": kernels}
    assert not is_built({}) and not is_built(sources)
    for name in ("a.main.so", "a.main.o", "b.optimized.o"):
        assert not is_built(sources)
        (tmp_path / name).touch()
    assert is_built(sources)
