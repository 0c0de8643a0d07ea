"""The halves of a program are compiled at the same time, and what goes wrong in one of them is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor import codecache
from torch._inductor.utils import fresh_cache

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.tuning.parallel_build import concurrent_builds


class Builder:
    """Builds a file, and waits for others to be built at the same time."""

    def __init__(self, path: Path, together: threading.Barrier | None = None, error: Exception | None = None) -> None:
        self.path, self.together, self.error = path, together, error

    def get_target_file_path(self) -> str:
        return str(self.path)

    def build(self) -> None:
        if self.together is not None:
            self.together.wait(timeout=60)
        if self.error is not None:
            raise self.error
        self.path.touch(exist_ok=False)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with concurrent_builds():
        yield tmp_path


def build(path: Path, *builders: Builder) -> None:
    codecache._worker_compile_cpp(f"{builders[0].path}.lock", builders)  # type: ignore[arg-type]


def test_halves_at_the_same_time(path: Path) -> None:
    together = threading.Barrier(2)
    build(path, Builder(path / "a.o", together), Builder(path / "b.o", together), Builder(path / "ab.so"))
    assert {found.suffix for found in path.iterdir()} >= {".o", ".so"}


def test_headers_at_the_same_time_and_before_the_files_that_include_them(path: Path) -> None:
    together = threading.Barrier(2)
    for name in "ab":
        build(path, Builder(path / f"{name}.h.gch", together))

    class Including(Builder):
        def build(self) -> None:
            assert (path / "a.h.gch").exists() and (path / "b.h.gch").exists()
            super().build()

    build(path, Including(path / "a.so"))
    assert (path / "a.so").exists()


@pytest.mark.parametrize("name", ["a.o", "b.o", "ab.so", "a.h.gch"])
def test_an_error(path: Path, name: str) -> None:
    errors = {name: ValueError(name)}
    if name.endswith("gch"):
        build(path, Builder(path / name, error=errors[name]))
    with pytest.raises(ValueError, match=name):
        build(path, *(Builder(path / each, error=errors.get(each)) for each in ("a.o", "b.o", "ab.so")))
    assert not (path / "ab.so").exists()


@pytest.mark.inductor
def test_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor compiles its two halves by the function that is replaced, and puts it back."""
    before, found = codecache._worker_compile_cpp, []

    def noting(lock: str, builders: tuple[codecache.CppBuilder, ...]) -> None:
        found.append(len(builders))
        before(lock, builders)

    monkeypatch.setattr(codecache, "_worker_compile_cpp", noting)

    def program(x: Tensor) -> list[Tensor]:
        return [x.exp().sin()]

    x = torch.linspace(0, 1, 7)
    with fresh_cache():
        compiled = compile_graph(trace(program, [x]), [x], "torch")
    assert torch.allclose(compiled(x)[0], program(x)[0])
    assert codecache._worker_compile_cpp is noting
    assert sorted(found)[-3:] == [1, 1, 3]
