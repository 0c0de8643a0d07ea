"""Runs the Python of the documentation, and checks that its commands are the ones that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sgc
import sgc.infer
from sgc.infer.compiled_loss import CompiledLoss
from sgc.runtime.loss_module import LossModule
from tests.docs.pages import NAMES, PAGES, ROOT, blocks, run
from tests.docs.pictures import PICTURES, graph_of, texts_of_dot, texts_of_svg

LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]*)(?:#([^)]*))?\)")
DIRECTIVES = {"{toctree}", "{eval-rst}"}  # Sphinx's, which a code host shows as they are


def setup_commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that make a virtual environment."""
    lines = (line for language, _, code in blocks(page) if language == "sh" for line in code.splitlines())
    return [line for line in lines if line.startswith("python -m venv ")]


@pytest.fixture
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run(page: Path) -> None:
    """All blocks of a page print what the page shows, and its picture is that of its graph."""
    names = run(page)
    name = page.relative_to(ROOT).as_posix()
    if name in PICTURES:
        picture = (ROOT / PICTURES[name][0]).read_text(encoding="utf-8")
        drawn = texts_of_dot(graph_of(name, names).to_dot())
        assert drawn and drawn == texts_of_svg(picture), "draw it anew: python -m tests.docs"


def test_pages_in_folders_are_found() -> None:
    assert set(PICTURES) <= set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_fences_are_closed_and_named(page: Path) -> None:
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0, "a fence is not closed"
    assert all(language in {"python", "py", "sh", "text", *DIRECTIVES} for language in fences[::2]), fences[::2]
    assert not any(fences[1::2]), "a fence is not closed"


def anchors(page: Path) -> set[str]:
    """The anchors that a code host and Sphinx give to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = [heading.lower().replace("`", "") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """The site's own check sees neither the README nor what an anchor is on a code host."""
    wrong = []
    for file, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        if "://" not in file and not (target.exists() and (not anchor or anchor in anchors(target))):
            wrong.append(f"{file}#{anchor}")
    assert wrong == []


def test_readme_has_two_setup_commands() -> None:
    run_example, test = setup_commands(ROOT / "README.md")
    script = re.search(r"\.venv/bin/python (examples/\w+\.py)$", run_example)
    assert script is not None and (ROOT / script[1]).exists(), run_example
    assert test.endswith(".venv/bin/python -m pytest -n 2"), test


def test_setup_commands_are_the_ones_of_ci_and_of_every_page() -> None:
    known = setup_commands(ROOT / "README.md")
    assert known[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for page in PAGES:
        assert set(setup_commands(page)) <= set(known), page


def test_error_classes_are_documented() -> None:
    from sgc import errors

    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert [name for name in classes if f"## `{name}`" not in page] == []


def public_methods(thing: type) -> list[str]:
    return [name for name in vars(thing) if not name.startswith("_")]


def test_the_api_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = [f"sgc.{name}" for name in sgc.__all__] + [f"sgc.infer.{name}" for name in sgc.infer.__all__]
    for thing in (LossModule, sgc.SVI, sgc.StochasticGraph, CompiledLoss):
        names += public_methods(thing)
    not_for_users = {"sgc.infer"}  # has a section of its own
    not_for_users |= {"extra_repr"}  # what torch's modules say of themselves when they are printed
    # What makes a graph, and what networkx asks of its subclasses.
    not_for_users |= {"add", "add_edge_across_particles", "replace", "copy", "subgraph"}
    missing = [name for name in names if name not in not_for_users and not re.search(rf"\b{re.escape(name)}\b", page)]
    assert missing == []


def test_the_imports_have_every_class_of_infer() -> None:
    page = (ROOT / "docs" / "from-pyro.md").read_text(encoding="utf-8")
    assert [name for name in sgc.infer.__all__ if f"`{name}`" not in page and f"import {name}`" not in page] == []


def test_the_seconds_of_the_first_steps_are_those_that_were_measured() -> None:
    """The table of what compiling costs has the numbers of the benchmark."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    section = text.partition("## What compiling costs")[2].partition("\n## ")[0]
    measured = (ROOT / "benchmarks" / "RESULTS_START.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    for program, *seconds in rows:
        table = measured.partition(f"## {program}\n")[2].partition("\n## ")[0]
        systems = {name: times for name, *times in map(cells, table.splitlines()) if times}
        ours, cached, theirs = (systems[name] for name in ("sgc", "sgc, from cache", "Pyro"))
        assert seconds == [ours[0], ours[3], cached[3], ours[4], theirs[0], theirs[3], theirs[4]], program


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
