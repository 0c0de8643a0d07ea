"""Foreign and damaged files: each is refused with one error, and nothing in it is run."""

from __future__ import annotations

import pickle
import random
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch

import sgc
from sgc.errors import SavedProgramError, SgcError
from sgc.saved.archive import write_archive
from sgc.saved.operators import is_allowed, named
from tests.saved.fixture import DATA, fixture
from tests.saved.foreign import DAMAGES, OPERATORS, Bomb, entries_of, forged, sealed

FORMAT_1 = Path(__file__).with_name("format_1.sgc")


@pytest.fixture
def content() -> bytes:
    return FORMAT_1.read_bytes()


@pytest.mark.parametrize("seed", range(120))
def test_damaged_files_are_refused(seed: int, content: bytes, tmp_path: Path) -> None:
    chance = random.Random(seed)
    damaged = DAMAGES[seed % len(DAMAGES)](content, chance)
    if damaged == content:
        return
    path = tmp_path / "damaged.sgc"
    path.write_bytes(damaged)
    with pytest.raises(SavedProgramError, match=r"damaged\.sgc"):
        sgc.load(path)


@pytest.mark.parametrize("seed", range(120))
def test_forged_files_run_nothing(seed: int, content: bytes, tmp_path: Path) -> None:
    """What the digest does not tell is told by what is read; a file that is one of sgc's after all is loaded."""
    chance, trap, path = random.Random(seed), tmp_path / "trap", tmp_path / "forged.sgc"
    forged(content, path, chance, trap)
    begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        sgc.load(path)
    except SavedProgramError as error:
        assert "forged.sgc" in str(error)
    assert not trap.exists()
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000


def test_files_of_other_programs_are_told_apart(content: bytes, tmp_path: Path) -> None:
    path, trap = tmp_path / "other.sgc", tmp_path / "trap"
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(SavedProgramError, match="is no file of sgc.save"):
        sgc.load(path)
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(SavedProgramError, match="another program has written it"):
        sgc.load(path)
    path.write_bytes(content[:-20])
    with pytest.raises(SavedProgramError, match="its end is missing"):
        sgc.load(path)
    path.write_bytes(content[:100] + b"?" + content[101:])
    with pytest.raises(SavedProgramError, match="is damaged: its contents are not those that were written"):
        sgc.load(path)
    assert not trap.exists()
    with pytest.raises(FileNotFoundError):
        sgc.load(tmp_path / "nothing.sgc")


def test_a_later_format_says_which_sgc_reads_it(content: bytes, tmp_path: Path) -> None:
    entries = entries_of(content)
    entries["manifest.json"] = entries["manifest.json"].replace(b'"format":1', b'"format":2')
    write_archive(tmp_path / "later.sgc", entries.items())
    with pytest.raises(SavedProgramError, match=r"is of format 2, written by sgc 0\.1\.0; this sgc reads format 1"):
        sgc.load(tmp_path / "later.sgc")


def test_a_device_that_is_not_there_is_named(content: bytes, tmp_path: Path) -> None:
    entries = entries_of(content)
    entries["manifest.json"] = entries["manifest.json"].replace(b'"device":"cpu"', b'"device":"cuda:99"', 1)
    write_archive(tmp_path / "elsewhere.sgc", entries.items())
    with pytest.raises(SavedProgramError, match=r"a tensor of .*elsewhere\.sgc cannot be made on cuda:99"):
        sgc.load(tmp_path / "elsewhere.sgc")


def test_a_zip_bomb_is_not_unpacked(content: bytes, tmp_path: Path) -> None:
    path, entries = tmp_path / "bomb.sgc", entries_of(content)
    sealed(path, entries, zipfile.ZIP_STORED)
    assert sgc.load(path)(DATA).isfinite()
    for name in ("manifest.json", "programs/0.json", "tensors/0"):
        sealed(path, entries | {name: bytes(10**8)}, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10**6
        with pytest.raises(SavedProgramError, match="the entries are larger than the file"):
            sgc.load(path)
    sealed(path, entries, zipfile.ZIP_LZMA)
    with pytest.raises(SavedProgramError, match="larger than the file|compressed or encrypted"):
        sgc.load(path)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_reaches_beyond_tensors_is_no_operator_of_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="no program calls"):
        named(name)


def test_what_programs_are_made_of_is_allowed() -> None:
    aten = torch.ops.aten
    for target in (aten.add.Tensor, aten.bernoulli.p, aten.mm.default, aten._to_copy.default, aten.gelu.default):
        assert is_allowed(target)
        assert named(f"aten::{target.overloadpacket.__name__}.{target._overloadname}") is target


def test_a_file_of_this_version_stays_readable() -> None:
    """It was written by sgc 0.1.0; do not write it anew: a later sgc has to read it."""
    assert FORMAT_1.stat().st_size < 20_000
    loaded, module = sgc.load(FORMAT_1), fixture()
    assert loaded.written.format == 1 and loaded.written.sgc == "0.1.0"
    assert loaded.optimizer_state is not None and list(loaded.optimizer_state["state"]) == [0, 1]
    for each in (loaded, module):
        for parameter in each.parameters():
            parameter.grad = None
        torch.manual_seed(1)
        each(DATA).backward()
    named_parameters = dict(module.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, named_parameters[name].grad)
    averages = {name: value for name, value in loaded.named_buffers() if name.startswith("baselines")}
    torch.testing.assert_close(averages, {n: v for n, v in module.named_buffers() if n.startswith("baselines")})
    assert loaded.graph.estimator("z").value == "score function"
    assert "decaying average (beta 0.9)" in str(loaded.graph)


def test_errors_are_those_of_sgc() -> None:
    assert issubclass(SavedProgramError, SgcError)
