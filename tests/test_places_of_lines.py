"""Where a line is, in words: the file, a package's without where it is installed, a notebook's cell."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from sgc.errors import SourceLine

CELL = "/tmp/ipykernel_7/123.py"


def test_of_ones_own_file() -> None:
    assert SourceLine("/home/me/model.py", 3).place == "/home/me/model.py:3"
    assert str(SourceLine("/home/me/model.py", 3, kept="x = 1")) == "/home/me/model.py:3: x = 1"


def test_of_an_installed_package() -> None:
    file = "/home/me/.venv/lib/python3.11/site-packages/pyro/infer/autoguide/guides.py"
    assert SourceLine(file, 525).place == "pyro/infer/autoguide/guides.py:525"


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        (SimpleNamespace(compile=SimpleNamespace(format_code_name={CELL: ("Cell", "In[3]")}.get)), "cell In[3]:2"),
        (SimpleNamespace(compile=SimpleNamespace(format_code_name={}.get)), f"{CELL}:2"),
        (SimpleNamespace(compile=SimpleNamespace()), f"{CELL}:2"),
        (None, f"{CELL}:2"),
    ],
    ids=["its cell", "another file", "an older IPython", "no notebook"],
)
def test_of_a_notebook(shell: object, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert SourceLine(CELL, 2).place == place
