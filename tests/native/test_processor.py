"""Vectors as wide as the processor's, without trials; with them where the compiler does not know its instructions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.cpu_vec_isa import pick_vec_isa, valid_vec_isa_list
from torch._inductor.utils import fresh_cache

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.errors import BackendError
from sgc.native import processor
from sgc.native.library import shared_library


@pytest.fixture
def compiler(tmp_path: Path) -> Iterator[Path]:
    """A compiler that notes its arguments; it knows no vectors of 512 bits, and no matrices, if a file says so."""
    script = tmp_path / "g++"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nif [ -e {tmp_path}/old ]; then\n'
        'case "$*" in *-mavx512*|*-mamx*) echo "unknown option" >&2; exit 1;; esac\nfi\n'
        f'exec {shutil.which("g++")} "$@"\n'
    )
    script.chmod(0o755)
    cpp_compiler_search.cache_clear()
    processor.forget()
    # A precompiled header for each compiler stays behind outside of the cache, 140 MB of it.
    with fresh_cache(), inductor_config.patch({"cpp.cxx": (None, str(script)), "cpp_cache_precompile_headers": False}):
        yield script
    cpp_compiler_search.cache_clear()
    processor.forget()


def is_right() -> bool:
    x = torch.linspace(0, 1, 50_000)

    def program(x: Tensor) -> list[Tensor]:
        return [x.exp().sin()]

    (found,) = compile_graph(trace(program, [x]), [x], "torch")(x)
    return torch.allclose(found, program(x)[0])


def sources(compiler: Path) -> list[str]:
    calls = (compiler.parent / "calls").read_text().splitlines()
    return [argument for call in calls for argument in call.split() if argument.endswith(".cpp")]


@pytest.mark.inductor
def test_nothing_is_tried(compiler: Path) -> None:
    assert is_right()
    assert len(sources(compiler)) == 2  # the kernels, and the program that calls them
    assert pick_vec_isa()


@pytest.mark.inductor
def test_a_compiler_older_than_the_processor(compiler: Path) -> None:
    (compiler.parent / "old").touch()
    assert is_right()
    assert not any("avx512" in str(isa) for isa in valid_vec_isa_list())


@pytest.mark.inductor
@pytest.mark.parametrize("old", [False, True])
def test_a_library_in_the_background(compiler: Path, old: bool) -> None:
    if old:
        (compiler.parent / "old").touch()
    library = shared_library('extern "C" int three() { return 3; }')
    assert library().three() == 3
    assert len(sources(compiler)) >= 1 + old


@pytest.mark.inductor
def test_a_library_that_cannot_be_compiled(compiler: Path) -> None:
    library = shared_library("three")
    with pytest.raises(
        BackendError, match="(?s)the C\\+\\+ compiler .*g\\+\\+ fails:.*error: .*three.*refuses what Inductor"
    ):
        library()
    with pytest.raises(BackendError, match="error: .*three"):
        library()  # nothing is left of the first attempt


@pytest.mark.inductor
def test_a_user_who_has_decided(compiler: Path) -> None:
    with inductor_config.patch({"cpp.vec_isa_ok": False}):
        assert is_right()
        assert not valid_vec_isa_list()
