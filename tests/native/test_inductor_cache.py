"""Files that were cut short and directories that cannot be written are passed by, and the user is told of them."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch._C as extension
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._inductor.utils import clear_caches

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.errors import BackendError, CacheWarning
from sgc.native.directory import make_directory, temporary_directory
from sgc.native.inductor_cache import is_whole
from sgc.native.library import shared_library

pytestmark = [pytest.mark.inductor, pytest.mark.cpu]


def replace(file: Path, content: bytes) -> None:
    """What this process has loaded from it stays there."""
    file.unlink()
    file.write_bytes(content)


def cut(file: Path, length: int) -> None:
    replace(file, file.read_bytes()[:length])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: cut(file, 0),
    "its start": lambda file: cut(file, 100),
    "one half": lambda file: cut(file, file.stat().st_size // 2),
    "the end is missing": lambda file: cut(file, file.stat().st_size - 20),
    "other bytes": lambda file: replace(file, b"\xff\x00 no program" * 40),
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Inductor keeps what it compiles."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kept"))
    clear_caches()
    with inductor_config.patch({"cpp_cache_precompile_headers": False}):
        yield tmp_path / "kept"
    clear_caches()


def seven() -> int:
    text = 'int many[9999] = {7};\nextern "C" int seven() { return many[0]; }'
    number: int = shared_library(text)().seven()
    return number


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_library(directory: Path, damage: str) -> None:
    assert seven() == 7
    for file in [*directory.rglob("*.so"), *directory.rglob("*.cpp")]:
        DAMAGE[damage](file)
    clear_caches()
    with pytest.warns(CacheWarning, match=f"kept in {directory}, .*delete what is damaged there"):
        assert seven() == 7
    assert seven() == 7


@pytest.mark.parametrize("place", ["a file", "within a file"])
def test_a_directory_that_cannot_be_written(directory: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    directory.write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory if place == "a file" else directory / "within"))
    with pytest.warns(CacheWarning, match=f"kept in {directory}.*directory that can be written"):
        assert seven() == 7


def test_a_directory_that_torch_cannot_make(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one torch's compiler could not even be imported, and sgc neither."""
    directory.write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory / "within"))
    with pytest.warns(CacheWarning, match=f"cannot be kept in {directory}/within .*set TORCHINDUCTOR_CACHE_DIR"):
        make_directory()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == temporary_directory()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory.parent / "new"))
    make_directory()
    assert (directory.parent / "new").is_dir()


def test_nowhere_to_write(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is kept nor where it could be compiled apart from that."""
    directory.write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    temporary_directory.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(BackendError, match=f"kept in {directory}: .*\\n.*TORCHINDUCTOR_CACHE_DIR and TMPDIR"):
                seven()
    finally:
        temporary_directory.cache_clear()


@pytest.mark.parametrize("suffix", [".so", ".cpp", ".py", ""])
def test_a_program(directory: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of whatever it consists, and however it is found again: by its graph, or by its text."""

    def program(x: Tensor) -> list[Tensor]:
        return [x.exp().sin()]

    x = torch.linspace(0, 1, 7)
    module = trace(program, [x])
    compile_graph(module, [x], "torch")
    for file in directory.rglob("*"):
        if file.is_file() and (file.suffix == suffix or not suffix):
            DAMAGE["one half"](file)
    clear_caches()
    caplog.clear()
    with pytest.warns(CacheWarning, match=f"kept in {directory}"):
        compiled = compile_graph(module, [x], "torch")
    assert torch.allclose(compiled(x)[0], program(x)[0])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_nothing_is_said_of_what_is_whole(directory: Path, recwarn: pytest.WarningsRecorder) -> None:
    for _ in range(2):
        assert seven() == 7
        clear_caches()
    assert not [warning for warning in recwarn if issubclass(warning.category, CacheWarning)]


def test_whole_libraries(tmp_path: Path) -> None:
    """A part of one would kill the process that uses what is missing."""
    whole = Path(extension.__file__)
    assert is_whole(str(whole))
    content = whole.read_bytes()
    for length in (0, 10, 64, 1000, len(content) // 2):
        (tmp_path / "part.so").write_bytes(content[:length])
        assert not is_whole(str(tmp_path / "part.so"))
