"""The page of supported programs is the zoo's."""

from __future__ import annotations

from pathlib import Path

from tests.reference.zoo import ZOO
from tests.reference.zoo.page import page


def test_page_is_current() -> None:
    written = Path(__file__).parents[2] / "docs" / "supported.md"
    assert written.read_text() == page()


def test_names_are_unique_and_a_third_is_compiled() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO) >= 60
    assert sum(entry.inductor for entry in ZOO) >= len(ZOO) / 3
