"""What was made of a program, in tables: how each gradient is estimated, what is trained, kept constant and guarded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch

from sgc.graph.drawing.wording import Wording
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import InputNode, Payload, SiteNode
from sgc.graph.program import InputKind, SiteKind
from sgc.passes.choose_estimators import why_chosen
from sgc.runtime.inspection.stages import reports
from sgc.runtime.specializing.specialization import Specialization
from sgc.table import Table

_P = TypeVar("_P", bound=Payload)


@dataclass(frozen=True)
class Explanation:
    """What :meth:`sgc.LossModule.explain` returns: tables, which print as text and are shown as HTML in a notebook."""

    tables: tuple[Table, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables))

    __repr__ = __str__

    def to_html(self) -> str:
        """The tables in HTML that needs no style sheet."""
        return "\n".join(table.to_html() for table in self.tables)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.to_html()}


def explained(specializations: Sequence[Specialization]) -> Explanation:
    """What was made of a program: of its latest specialization, and why there are others."""
    latest = specializations[-1]
    graph = latest.graph
    wording = Wording(graph, unfold=False)
    tables = [
        Table("latent sites", _SITE_HEAD, tuple(_sites(graph, wording))),
        Table("parameters", (), tuple(_parameters(graph, wording))),
        Table(
            "buffers, and constants that the program closes over",
            _CONSTANT_HEAD,
            tuple(_constants(graph, wording)),
            frozenset({_BYTES}),
        ),
        Table("sampled or scored by a call of Python", (), tuple(_opaque(graph, wording))),
        Table("what the latest specialization relies on", (), tuple((line,) for line in latest.describe())),
        Table(
            "specializations",
            ("", "made because of", "calls, without compiled steps"),
            tuple(_specializations(specializations)),
            frozenset({_NUMBER, _CALLS}),
        ),
    ]
    tables += [report.table(f"passes: {title}") for title, report in reports(latest)]
    return Explanation(tuple(table for table in tables if table.rows))


_SITE_HEAD = ("", "distribution", "plates", "estimator", "because", "downstream costs", "baseline", "line")
_CONSTANT_HEAD = ("", "", "bytes", "")
_BYTES, _NUMBER, _CALLS = 2, 0, 2


def _sites(graph: StochasticGraph, wording: Wording) -> Iterator[tuple[str, ...]]:
    """A row for each latent site, or for those that are folded into one."""
    every = len(graph.costs())
    for site in _first_of_each(graph, wording, SiteNode):
        if site.role is not SiteKind.LATENT:
            continue
        counts = sorted({len(graph.downstream_costs(member)) for member in wording.members(site.key)})
        count = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        baseline = graph.baseline(site.key)
        parts = [] if baseline is None else [baseline.words(), "learned" if baseline.learned else ""]
        yield (
            wording.name(site.key),
            f"{site.distribution} {list(site.shape)}",
            ", ".join(f"{wording.plate(site.key, place)}: {plate.size}" for place, plate in enumerate(site.plates)),
            graph.estimator(site.key).value,
            why_chosen(graph, site.key),
            f"{count} of {every}",
            " + ".join(filter(None, parts)) or ("none" if graph.estimator(site.key).scored else ""),
            str(site.source or ""),
        )


def _parameters(graph: StochasticGraph, wording: Wording) -> Iterator[tuple[str, ...]]:
    for node in _first_of_each(graph, wording, InputNode):
        if node.role is InputKind.PARAMETER:
            yield wording.name(node.key), _tensor(node), "" if node.requires_grad else "not trained"


def _constants(graph: StochasticGraph, wording: Wording) -> Iterator[tuple[str, ...]]:
    """Buffers and constants with their sizes; those that a site observes should be arguments."""
    for node in _first_of_each(graph, wording, InputNode):
        if node.role in (InputKind.BUFFER, InputKind.CONSTANT):
            size = prod(node.shape) * getattr(torch, node.dtype.removeprefix("torch.")).itemsize
            observed = [site for site in graph.successors(node.key) if site in graph.sites(SiteKind.OBSERVED)]
            advice = f"data of '{observed[0]}': pass it to model and guide as an argument" if observed else ""
            yield wording.name(node.key), _tensor(node), f"{size:,}", advice if node.shape else ""


def _opaque(graph: StochasticGraph, wording: Wording) -> Iterator[tuple[str, ...]]:
    for site in _first_of_each(graph, wording, SiteNode):
        if site.opaque:
            yield wording.name(site.key), site.distribution, str(site.source or "")


def _specializations(specializations: Sequence[Specialization]) -> Iterator[tuple[str, ...]]:
    for number, one in enumerate(specializations, 1):
        yield str(number), one.reason, str(sum(compiled.calls for compiled in one.compiled.values()))


def _first_of_each(graph: StochasticGraph, wording: Wording, kind: type[_P]) -> Iterator[_P]:
    """The first node of each folded node of a type."""
    for node in wording.nodes:
        payload = graph.payload(node.first) if node.first in graph else None
        if isinstance(payload, kind):
            yield payload


def _tensor(node: InputNode) -> str:
    return f"{node.dtype.removeprefix('torch.')}{list(node.shape)}"
