"""Tables of text: printed in columns, and shown as HTML that needs no style sheet, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any


class Text(str):
    """Several lines that are shown as they are where an interpreter or a notebook shows a value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_CELL = "padding:2px 10px;vertical-align:top;text-align:"


@dataclass(frozen=True)
class Table:
    """A table under a title. A row may be shorter than others: its last cells are empty.

    :param head: the names of the columns; none: the first column says what is in the others.
    :param numbers: the columns, counted from 0, that are aligned on the right, as numbers are.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    __repr__ = __str__

    def lines(self) -> Iterator[str]:
        """The title, if there is one, and the rows, indented."""
        if self.title:
            yield self.title
        rows = [*([self.head] if self.head else []), *self.rows]
        count = max(map(len, rows), default=0)
        widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(count)]
        for row in rows:
            cells = (
                cell.rjust(width) if place in self.numbers else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=False))
            )
            yield f"  {'  '.join(cells)}".rstrip()

    def to_html(self, *, below: str = "") -> str:
        """The table in HTML; every text is escaped, but for ``below``, which is HTML."""
        lines = ["<div>", *([f"<p><b>{escape(self.title)}</b></p>"] if self.title else [])]
        lines.append('<table style="border-collapse:collapse">')
        if self.head:
            lines.append(self._html_row("th", self.head))
        lines += [self._html_row("td", row) for row in self.rows]
        return "\n".join([*lines, "</table>", *([below] if below else []), "</div>"])

    def _html_row(self, tag: str, row: tuple[str, ...]) -> str:
        count = max(map(len, [self.head, *self.rows]))
        cells = enumerate((*row, *[""] * (count - len(row))))
        aligned = (
            f'style="{_CELL}{"right" if place in self.numbers else "left"}">{escape(cell)}' for place, cell in cells
        )
        return "<tr>" + "".join(f"<{tag} {cell}</{tag}>" for cell in aligned) + "</tr>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.to_html()}
