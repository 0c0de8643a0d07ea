"""Runs the Python of the documentation, and checks that its commands are the ones that CI runs."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for page in [*(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")), *ROOT.glob("docs/*.md")]
    if page.exists()
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """The fenced blocks of a page: the language, the number of lines before the code, and the code."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield found[1], text[: found.start(2)].count("\n"), found[2]


def setup_commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that make a virtual environment."""
    lines = (line for language, _, code in blocks(page) if language == "sh" for line in code.splitlines())
    return [line for line in lines if line.startswith("python -m venv ")]


@pytest.fixture
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, in their order, in one namespace and a working directory of their own.

    A block of text shows what the block of Python before it prints; ``...`` stands for anything.
    """
    module = types.ModuleType(f"page_{page.stem}")
    # Dataclasses and pickles look their module up; errors show the line of the page.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    checker = doctest.OutputChecker()
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    printed = ""
    for language, line, code in blocks(page):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
            printed = out.getvalue().replace(f"{ROOT}/", "")
        elif language == "text":
            example = doctest.Example("", code)
            shown = checker.check_output(code, printed, options)
            assert shown, f"{page}:{line}\n{checker.output_difference(example, printed, options)}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_fences_are_closed_and_named(page: Path) -> None:
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0, "a fence is not closed"
    assert all(language in {"python", "py", "sh", "text"} for language in fences[::2]), fences[::2]
    assert not any(fences[1::2]), "a fence is not closed"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    # docs/supported.md is generated and may not stand beside the others yet.
    assert [target for target in missing if not target.endswith("supported.md")] == []


def test_readme_has_two_setup_commands() -> None:
    run, test = setup_commands(ROOT / "README.md")
    script = re.search(r"\.venv/bin/python (examples/\w+\.py)$", run)
    assert script is not None and (ROOT / script[1]).exists(), run
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
