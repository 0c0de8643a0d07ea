"""The pages of the documentation and their fenced blocks."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for page in [*(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")), *ROOT.glob("docs/**/*.md")]
    if page.exists()
)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: Path) -> Iterator[tuple[str, int, str]]:
    """The fenced blocks of a page: the language, the number of lines before the code, and the code."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        yield fence[1], text[: fence.start(2)].count("\n"), fence[2]


def run(page: Path) -> dict[str, Any]:
    """Run all blocks of a page, in their order, in one namespace, which is returned.

    A block of text shows what the block of Python before it prints; ``...`` stands for anything.

    :raises AssertionError: if something else is printed.
    """
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    checker = doctest.OutputChecker()
    printed = ""
    try:
        for language, line, code in blocks(page):
            if language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    # Errors show the line of the page.
                    exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
                printed = out.getvalue().replace(f"{ROOT}/", "")
            elif language == "text":
                example = doctest.Example("", code)
                shown = checker.check_output(code, printed, _OPTIONS)
                assert shown, f"{page}:{line}\n{checker.output_difference(example, printed, _OPTIONS)}"
    finally:
        del sys.modules[module.__name__]
    return module.__dict__
