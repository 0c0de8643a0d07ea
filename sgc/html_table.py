"""Tables in HTML that need no style sheet, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_CELL = "padding:2px 10px;text-align:left;vertical-align:top"


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, below: str = "") -> str:
    """A table under a title; every text is escaped, but for ``below``, which is HTML.

    :param head: the names of the columns; none: the first column says what is in the second.
    """
    lines = [f"<div><p><b>{escape(title)}</b></p>", '<table style="border-collapse:collapse">']
    if head:
        lines.append(_row("th", head))
    lines += [_row("td", row) for row in rows]
    return "\n".join([*lines, "</table>", *([below] if below else []), "</div>"])


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"
