"""What ``loss_module.verify`` has found: a table of what was compared, and why what differs by design does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sgc.graph.drawing.folding import FEWEST
from sgc.graph.drawing.wording import Wording
from sgc.graph.graph import StochasticGraph
from sgc.table import Table

_PARAMETER = "param "
"""What the keys of parameters begin with in the graph."""


@dataclass(frozen=True)
class Difference:
    """One compared quantity: the largest absolute difference, and the largest magnitude on Pyro's side.

    ``by_design`` says that it equals Pyro's once Pyro's known faults are taken away.
    """

    name: str
    difference: float
    magnitude: float
    note: str = ""
    by_design: bool = False

    def within(self, tolerance: float) -> bool:
        """Whether the difference is small relative to the magnitude (or to 1, if that is larger)."""
        return self.difference <= tolerance * max(1.0, self.magnitude)


@dataclass(frozen=True)
class Reason:
    """A fault of Pyro's that sgc does not share: what it did, what differs by it, and where the docs tell of it."""

    text: str
    names: tuple[str, ...]
    section: str


@dataclass(frozen=True)
class Verification:
    """The result of ``loss_module.verify``; its ``str`` is a table.

    What is folded in the printed graph (time steps, layers) is one row of the table, if all of it is judged alike: that
    with the largest difference. ``sites`` and ``gradients`` have every one.

    ``backend`` says what computed sgc's side. With ``backend="inductor", rng="fast"`` other random numbers are
    drawn than by Pyro; then the emitted module itself is what is compared.
    """

    backend: str
    loss: Difference
    sites: tuple[Difference, ...]
    gradients: tuple[Difference, ...]
    tolerance: float
    reasons: tuple[Reason, ...] = ()
    graph: StochasticGraph | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether everything agrees to the tolerance, but for what differs by design."""
        return all(row.by_design or row.within(self.tolerance) for _, row in self._rows())

    @property
    def differs_by_design(self) -> tuple[str, ...]:
        """The reasons for the differences that are by design."""
        return tuple(reason.text for reason in self.reasons)

    def __bool__(self) -> bool:
        return self.ok

    def _rows(self) -> list[tuple[str, Difference]]:
        return [("loss", self.loss), *(("site", d) for d in self.sites), *(("gradient", d) for d in self.gradients)]

    def _folded(self) -> Iterator[tuple[str, str, Difference]]:
        """Kind, name and difference of each row of the table."""
        wording = None if self.graph is None else Wording(self.graph, unfold=False)
        groups: dict[tuple[str, str], list[Difference]] = {}
        for kind, row in self._rows():
            groups.setdefault((kind, row.name if wording is None else _name(wording, kind, row.name)), []).append(row)
        for (kind, name), rows in groups.items():
            if len(rows) > 1 and len({(self._mark(row), row.note) for row in rows}) == 1:
                yield kind, name, max(rows, key=lambda row: row.difference / max(1.0, row.magnitude))
            else:
                yield from ((kind, row.name, row) for row in rows)

    def __str__(self) -> str:
        rows = list(self._folded())
        width = max(len(name) for _, name, _ in rows)
        lines = [self._title()]
        for kind, name, difference in rows:
            mark = self._mark(difference)
            note = f"  {difference.note}" if difference.note else ""
            lines.append(
                f"  {mark:<9} {kind:<8} {name:<{width}}  |difference| {difference.difference:.2e}"
                f"  of {difference.magnitude:.2e}{note}"
            )
        for text, names, section in self._told_reasons():
            lines += [f"  by design: {text}", f"    so differ {names}; see {section}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _told_reasons(self) -> Iterator[tuple[str, str, str]]:
        """Text, names and section of each reason; of many sites that differ alike the first one's."""
        alike: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
        for reason in self.reasons:
            kind = re.sub("'[^']*'", "''", reason.text)
            alike.setdefault((kind, reason.names, reason.section), []).append(reason.text)
        for (_, names, section), texts in alike.items():
            if len(texts) >= FEWEST:
                texts = [f"{texts[0]} (and {len(texts) - 1} more reasons of this kind)"]
            yield from ((text, ", ".join(names), section) for text in texts)

    def _title(self) -> str:
        judged = "DIFFERENT" if not self.ok else "equal but where sgc differs by design" if self.reasons else "equal"
        return f"sgc ({self.backend}) against eager Pyro under one seed: {judged}"

    def _mark(self, difference: Difference) -> str:
        return "by design" if difference.by_design else "ok" if difference.within(self.tolerance) else "!!"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        rows = [
            (self._mark(row), kind, name, f"{row.difference:.2e}", f"{row.magnitude:.2e}", row.note)
            for kind, name, row in self._folded()
        ]
        rows += [
            ("by design", "", names, "", "", f"{text}; see {where}") for text, names, where in self._told_reasons()
        ]
        table = Table(self._title(), ("", "", "", "|difference|", "of", ""), tuple(rows), frozenset({3, 4}))
        return {"text/plain": str(self), "text/html": table.to_html()}


def _name(wording: Wording, kind: str, name: str) -> str:
    """The name of the folded node that a row is about; its own if the graph draws none."""
    key = f"{_PARAMETER}{name}" if kind == "gradient" else name
    return wording.name(key).removeprefix(_PARAMETER) if wording.draws(key) else name
