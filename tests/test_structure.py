"""Imports point one way, between folders and within ``emit``; no two files have one name."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

import sgc

ROOT = Path(sgc.__file__).parent
LAYERS = (
    {"errors", "config", "table", "native"},
    {"graph"},
    {"tracing", "passes", "emit"},
    {"guards"},
    {"runtime"},
    {"training", "api"},
    {"infer"},
    {"__init__"},
    {"doctor", "explain_command", "saved"},
    {"__main__"},
)
INDEPENDENT = {"tracing", "passes", "emit"}
WITHIN_EMIT = (
    {"fx", "safe_operands"},
    {"differentiate", "emitter", "particle_loop", "rewrites", "rollback", "train_step"},
    {"inductor"},
    {"backends"},
)


def own_and_imported(path: Path, within: str) -> tuple[str, set[str]]:
    """The part of a package that a file is in, and the parts of that package that it imports, itself among them."""
    depth = len(within.split("."))
    own = ".".join(("sgc", *path.relative_to(ROOT).with_suffix("").parts)).split(".")
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith(f"{within}."):
                part = name.split(".")[depth]
                parts.add(part if part in known(within) else "__init__")
            elif name == within:
                parts.add("__init__")
    return own[depth], parts


def known(within: str) -> set[str]:
    folder = ROOT.joinpath(*within.split(".")[1:])
    return {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


def backwards(within: str, layers: tuple[set[str], ...]) -> list[str]:
    rank = {part: position for position, layer in enumerate(layers) for part in layer}
    assert known(within) - {"__init__"} == rank.keys() - {"__init__"}, "a part without a layer"
    folder = ROOT.joinpath(*within.split(".")[1:])
    against = []
    for path in sorted(folder.rglob("*.py")):
        own, imported = own_and_imported(path, within)
        if own == "__init__":
            continue
        for other in imported - {own}:
            if rank[other] > rank[own] or (rank[other] == rank[own] and own in INDEPENDENT):
                against.append(f"{path.relative_to(ROOT)} imports {other}")
    return against


def test_no_import_runs_back() -> None:
    assert len(list(ROOT.rglob("*.py"))) > 100
    assert not backwards("sgc", LAYERS)


def test_no_import_runs_back_within_emit() -> None:
    assert not backwards("sgc.emit", WITHIN_EMIT)


BACKENDS = {"inductor", "eager", "torchscript"}


def test_backends_are_asked_and_not_compared_by_name() -> None:
    """What ``dynamic`` is called is no backend."""
    compared = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())) if path.parent.name != "backends" else ():
            if isinstance(node, (ast.Compare, ast.match_case)) and "dynamic" not in ast.dump(node):
                inner = node if isinstance(node, ast.Compare) else node.pattern
                found = {constant.value for constant in ast.walk(inner) if isinstance(constant, ast.Constant)}
                compared += [f"{path.relative_to(ROOT)}: {ast.unparse(inner)}"] if found & BACKENDS else []
    assert not compared


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.name for path in ROOT.rglob("*.py") if path.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]


def test_each_folder_says_what_belongs_there() -> None:
    folders = {path.parent for path in ROOT.rglob("*.py")} - {ROOT}
    silent = [
        f for f in folders if "Here belong" not in (ast.get_docstring(ast.parse((f / "__init__.py").read_text())) or "")
    ]
    assert {f.name for f in silent} <= {"infer"}


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_every_source_is_packaged() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["sgc"]
    packaged = {path for pattern in patterns for path in ROOT.glob(pattern)}
    others = {path for path in ROOT.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == packaged
