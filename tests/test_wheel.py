"""The wheel holds the whole package, its C++ and its types too, and nothing besides."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import sgc

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built as pip builds it, but from a copy, so that nothing is left here, and without the internet."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made")
    for name in NEEDED:
        shutil.copy(ROOT / name, source)
    for folder in ("sgc", "tests", "examples", "benchmarks", "docs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", BUILD, str(made)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = made.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sgc").rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert "sgc/py.typed" in expected
    assert {"sgc/native/objects.cpp", "sgc/native/step.cpp"} <= expected


def test_the_wheel_says_its_version_its_licence_and_its_extras(wheel: zipfile.ZipFile) -> None:
    about = f"sgc-{sgc.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{about}/METADATA").decode())
    assert metadata["Version"] == sgc.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"draw", "notebook", "docs"} <= set(metadata.get_all("Provides-Extra", []))
    assert "Tag: py3-none-any" in wheel.read(f"{about}/WHEEL").decode()  # C++ is compiled where it runs
    assert f"{about}/licenses/LICENSE" in wheel.namelist()
