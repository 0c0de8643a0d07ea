"""Tables: columns in text, and cells in HTML."""

from __future__ import annotations

import re

import pytest

from sgc.table import Table


def test_text_stands_on_the_left_and_numbers_on_the_right() -> None:
    table = Table(
        "of two sites", ("site", "share", "because"), (("z", "9.5%", "a"), ("longer", "90.5%", "")), frozenset({1})
    )
    assert str(table).splitlines() == [
        "of two sites",
        "  site    share  because",
        "  z        9.5%  a",
        "  longer  90.5%",
    ]


def test_a_row_may_be_short_and_a_table_without_title_and_head() -> None:
    table = Table("", (), (("a", "1", "x"), ("and 3 more",)), frozenset({1}))
    assert str(table).splitlines() == ["  a           1  x", "  and 3 more"]
    assert table.to_html().count("<td") == 6 and "<p>" not in table.to_html() and "<th" not in table.to_html()


def test_a_table_without_rows() -> None:
    assert str(Table("nothing", ("a", "b"), ())) == "nothing\n  a  b"
    assert str(Table("nothing", (), ())) == "nothing"


@pytest.mark.parametrize("place", ["title", "head", "cell"])
def test_html_is_escaped_but_for_what_is_html(place: str) -> None:
    text = "<b> & 'x'"
    table = Table(
        text if place == "title" else "t", (text if place == "head" else "h",), ((text if place == "cell" else "c",),)
    )
    page = table.to_html(below="<svg></svg>")
    assert "&lt;b&gt; &amp; &#x27;x&#x27;" in page and text not in page and page.endswith("<svg></svg>\n</div>")


def test_html_aligns_as_the_text_does() -> None:
    page = Table("", ("a", "b"), (("x", "1"),), frozenset({1})).to_html()
    assert re.findall(r"text-align:(\w+)", page) == ["left", "right"] * 2
    bundle = Table("t", (), (("x", "1"),))._repr_mimebundle_()
    assert bundle["text/plain"] == "t\n  x  1" and bundle["text/html"].startswith("<div>")
