"""The loops of an optimizer's update are compiled by gcc and by clang, whose options differ."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch._inductor.config as inductor_config
from torch._inductor.cpp_builder import cpp_compiler_search, is_clang, is_gcc
from torch._inductor.utils import fresh_cache

from sgc.emit.inductor.cpp_entry import library_of

DOUBLED = "float* x = (float*)p[0]; for (int64_t i = begin; i < end; ++i) x[i] = x[i] + x[i];"

LIKE_CLANG = """#!/bin/sh
for option in "$@"; do
  case "$option" in
    -ftree-loop-vectorize | -fno-tree-loop-vectorize) echo "unknown argument: '$option'" >&2; exit 1 ;;
    -gline-tables-only | -Werror=*) ;;
    *) set -- "$@" "$option" ;;
  esac
  shift
done
exec g++ "$@"
"""
"""A compiler under the name of clang, which refuses what clang refuses."""


def forget_the_compiler() -> None:
    """Let Inductor look which one it is to use, and whose options that takes."""
    for answer in (cpp_compiler_search, is_clang, is_gcc):
        answer.cache_clear()


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("compiler", ["g++", "clang++", "like clang++"])
def test_an_update_is_compiled(compiler: str, tmp_path: Path) -> None:
    path = shutil.which(compiler.removeprefix("like ")) if compiler != "like clang++" else str(tmp_path / "clang++")
    if path is None or shutil.which("g++") is None:
        pytest.skip(f"there is no {compiler} here")
    if compiler == "like clang++":
        Path(path).write_text(LIKE_CLANG)
        Path(path).chmod(0o755)
    forget_the_compiler()
    try:
        with fresh_cache(), inductor_config.patch({"cpp.cxx": (None, path), "cpp_cache_precompile_headers": False}):
            library = library_of([DOUBLED])()
    finally:
        forget_the_compiler()
    numbers = (ctypes.c_float * 5)(1, 2, 3, 4, 5)
    arrays = (ctypes.c_void_p * 1)(ctypes.addressof(numbers))
    library.function_0(arrays, ctypes.c_int64(1), ctypes.c_int64(4), True)
    assert list(numbers) == [1, 4, 6, 8, 5]
