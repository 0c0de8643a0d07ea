"""What ``loss_module.gradient_variance`` has found: a table, a chart, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import SiteNode
from sgc.runtime.variance.remedies import SiteVariance, remedy
from sgc.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALL_SHARE = 0.2
"""Below this part of the variance nothing is advised about sites."""

_MOST = 0.5
"""Above this part of the variance of terms without a score function it is said what lowers that."""

_NAMED = 3
"""An advice names at most so many sites."""

_ROWS = 20
"""The printed table has at most so many sites and parameters, those with the largest variance."""


@dataclass(frozen=True)
class ParameterVariance:
    """The variance of the gradient of one parameter (unconstrained), summed over its elements.

    ``mean_norm`` is the Euclidean norm of the mean gradient.
    """

    name: str
    variance: float
    mean_norm: float
    elements: int


@dataclass(frozen=True)
class GradientVariance:
    """The variance of the gradient: the sum over all elements of all parameters, at one point and on one batch.

    ``samples`` is how many gradients were drawn; None if all outcomes were weighted instead. ``without_baselines`` is
    what the variance would be without any, ``without_rao_blackwellisation`` if, besides, every score function were
    multiplied by all costs; None where the program has nothing of the kind.
    """

    samples: int | None
    total: float
    without_baselines: float | None
    without_rao_blackwellisation: float | None
    sites: tuple[SiteVariance, ...]
    parameters: tuple[ParameterVariance, ...]
    graph: StochasticGraph = field(repr=False, compare=False)

    def site(self, name: str) -> SiteVariance:
        """The row of a site.

        :raises KeyError: if it has no score function.
        """
        return next((row for row in self.sites if row.site == name), None) or _missing(name)

    def share(self, name: str) -> float:
        """The part of the whole variance that a site's term has, from 0 to 1 (or less than 0, see `SiteVariance`)."""
        return self.site(name).variance / self.total if self.total else 0.0

    def advice(self) -> tuple[str, ...]:
        """What would lower the variance, the site with the largest part first."""
        return tuple(self._advice())

    def _advice(self) -> Iterator[str]:
        ranked = self._ranked()
        groups: dict[tuple[str, str | None], list[SiteVariance]] = {}
        for row in ranked:
            if row.site in self.graph:
                groups.setdefault(remedy(self.graph, row, self.total), []).append(row)
        for (text, baseline), rows in groups.items():
            share = sum(row.variance for row in rows) / self.total if self.total else 0.0
            if share >= _SMALL_SHARE:
                names = [row.site for row in rows]
                asked = _option(names if len(names) <= _NAMED else ["*"], str(baseline))
                told = text.format(asked=asked, enumerated=_option(names, "enumerate"))
                yield f"{self._named(rows)}: {share:.0%} of the variance, {told}"
        rest = next((row for row in ranked if row.site not in self.graph), None)
        if rest is not None and ranked[0] is rest and len(ranked) > 1 and rest.variance > _MOST * self.total:
            yield f"{rest.site}: more particles or a larger minibatch divide it; baselines leave it as it is"

    def _named(self, rows: list[SiteVariance]) -> str:
        names = [self._with_line(row.site) for row in rows[:_NAMED]]
        more = len(rows) - _NAMED
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")

    def _with_line(self, site: str) -> str:
        node = self.graph.payload(site)
        source = node.source if isinstance(node, SiteNode) else None
        return site if source is None else f"{site} ({source.place})"

    def _ranked(self) -> list[SiteVariance]:
        return sorted(self.sites, key=lambda row: -row.variance)

    def __str__(self) -> str:
        how = "weighted over all outcomes" if self.samples is None else f"from {self.samples} gradients"
        lines = [f"variance of the gradient, {how}: {self.total:.4g}"]
        for text, value in self._instead():
            lines.append(f"  {text}: {value:.4g}{_times(value, self.total)}")
        lines += ["", *self._site_table().lines()]
        lines += ["", *self._parameter_table().lines()]
        advice = self.advice()
        if advice:
            lines += ["", *advice]
        return "\n".join(lines)

    __repr__ = __str__

    def _instead(self) -> Iterator[tuple[str, float]]:
        if self.without_baselines is not None:
            yield "without baselines", self.without_baselines
        if self.without_rao_blackwellisation is not None:
            yield "without baselines and Rao-Blackwellisation", self.without_rao_blackwellisation

    def _site_table(self) -> Table:
        ranked = self._ranked()
        others = {
            head: values
            for head, values in {
                "without its baseline": [row.without_baseline for row in ranked],
                "without Rao-Blackwellisation": [row.without_rao_blackwellisation for row in ranked],
                "with a decaying average": [row.with_decaying_average for row in ranked],
                "with leave-one-out": [row.with_leave_one_out for row in ranked],
            }.items()
            if any(value is not None for value in values)
        }
        rows = []
        for place, row in enumerate(ranked[:_ROWS]):
            share = f"{row.variance / self.total:.1%}" if self.total else "0"
            own = (values[place] for values in others.values())
            rows.append((row.site, share, *("" if v is None else _factor(v, self.total) for v in own)))
        return _ranking(("term of", "share", *others), rows, len(ranked))

    def _parameter_table(self) -> Table:
        head = ("gradient of", "variance", "share", "standard deviation / norm of the mean")
        rows = []
        ranked = sorted(self.parameters, key=lambda row: -row.variance)
        for row in ranked[:_ROWS]:
            share = f"{row.variance / self.total:.1%}" if self.total else "0"
            noise = f"{max(row.variance, 0.0) ** 0.5 / row.mean_norm:.3g}" if row.mean_norm else ""
            rows.append((row.name, f"{row.variance:.4g}", share, noise))
        return _ranking(head, rows, len(ranked))

    def _repr_html_(self) -> str:
        head, *others = str(self).partition("\n\n")[0].splitlines()
        advice = "".join(f"<li>{escape(line)}</li>" for line in self.advice())
        tables = self._site_table().to_html() + self._parameter_table().to_html()
        before = "".join(f"<br>{escape(line)}" for line in others)
        return f"<p><b>{escape(head)}</b>{before}</p>{tables}<ul>{advice}</ul>"

    def plot(self, axes: Axes | None = None) -> Axes:
        """A bar for the share of each site's term, the largest on top; needs matplotlib."""
        if axes is None:
            import matplotlib.pyplot as plt

            _, axes = plt.subplots(figsize=(6, 0.8 + 0.3 * min(len(self.sites), _ROWS)), layout="constrained")
        ranked = self._ranked()[:_ROWS][::-1]
        shares = [100 * row.variance / self.total if self.total else 0.0 for row in ranked]
        axes.barh([row.site for row in ranked], shares)
        axes.set_xlabel("share of the gradient's variance, %")
        return axes


def _option(names: list[str], asked: str) -> str:
    """The option ``estimators`` that asks for one thing at some sites, of which the first few are written out."""
    entries = [f"{name!r}: {asked!r}" for name in names[:_NAMED]]
    return f"estimators={{{', '.join([*entries, *(['...'] if len(names) > _NAMED else [])])}}}"


def _missing(name: str) -> Any:
    raise KeyError(f"{name!r} has no score function, and so no term of its own")


def _factor(value: float, total: float) -> str:
    return f"x {value / total:.3g}" if total > 0 else f"{value:.3g}"


def _times(value: float, total: float) -> str:
    return f" (x {value / total:.3g})" if total > 0 else ""


def _ranking(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], count: int) -> Table:
    """A table without a title of the first of ``count`` rows; a last row says how many are left out."""
    left_out = [(f"and {count - _ROWS} more",)] if count > _ROWS else []
    return Table("", head, (*rows, *left_out), frozenset(range(1, len(head))))
