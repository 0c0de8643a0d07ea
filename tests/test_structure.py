"""Imports point one way: errors <- {config, native} <- graph <- {capturing, passes, emit} <- run <- ... <- sgc."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import sgc

ROOT = Path(sgc.__file__).parent
RANK = {
    "errors": 0,
    "config": 0.5,
    "native": 0.5,
    "graph": 1,
    "capturing": 2,
    "passes": 2,
    "emit": 2,
    "run": 3,
    "training": 4,
    "infer": 5,
    "__init__": 6,
}


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("sgc."):
                found.add(name.split(".")[1])
            elif name == "sgc":
                found.add("__init__")
    return found


def test_no_arrow_runs_back() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 20
    backwards = []
    for path in files:
        own = layer(path)
        for other in imported_layers(path):
            if own != "__init__" and other != own and RANK[other] >= RANK[own]:
                backwards.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not backwards


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_every_source_is_packaged() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["sgc"]
    packaged = {path for pattern in patterns for path in ROOT.glob(pattern)}
    others = {path for path in ROOT.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == packaged
