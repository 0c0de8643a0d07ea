"""What sgc does with Inductor is part of the key of Inductor's cache, whatever file it is in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sgc.emit.inductor import cache_key
from sgc.emit.inductor.cache_key import Generator
from sgc.emit.inductor.tuning.all_tunings import TUNINGS
from sgc.emit.inductor.workarounds.all_workarounds import WORKAROUNDS
from sgc.native.switches import without

FOLDER = Path(cache_key.__file__).parent


@pytest.mark.parametrize("name", ["workarounds/own_memory.py", "tuning/lean_wrapper.py", "compile_graph.py"])
def test_a_changed_file(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "inductor"
    shutil.copytree(FOLDER, copy)
    assert Generator(copy).uuid() == Generator().uuid()
    (copy / name).write_text((copy / name).read_text() + "\n")
    assert Generator(copy).uuid() != Generator().uuid()


def test_a_new_file(tmp_path: Path) -> None:
    copy = tmp_path / "inductor"
    shutil.copytree(FOLDER, copy)
    (copy / "workarounds" / "one_more.py").write_text('"""A workaround."""\n')
    assert Generator(copy).uuid() != Generator().uuid()


def test_what_is_switched_off() -> None:
    keys = {Generator().uuid()}
    names = [entry.name for entry in (*WORKAROUNDS, *TUNINGS)]
    for name in names:
        with without(name):
            keys.add(Generator().uuid())
    assert len(keys) == 1 + len(names) == 1 + len(set(names))
