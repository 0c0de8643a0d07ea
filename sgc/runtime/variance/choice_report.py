"""What ``loss_module.choice()`` tells: the candidates at each site, their figures, and which were taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

from sgc.config import EstimatorName
from sgc.table import Table


@dataclass(frozen=True)
class Candidate:
    """What a site could have.

    ``variance`` is that of the gradient (the sum over the elements of the parameters that a score function of the sites
    reaches) if the site has it and the other sites have what was chosen for them; for ``"enumerate"``, if it is
    enumerated together with others that can be, or by itself, and the rest has what is best then. ``time`` is that of a
    step if all sites that can have it do, over that of the fastest candidate; 1 where it takes less than twice as long.
    """

    name: EstimatorName
    variance: float
    time: float


@dataclass(frozen=True)
class SiteChoice:
    """The candidates at one site, and the name of the one that was chosen."""

    site: str
    chosen: EstimatorName
    candidates: tuple[Candidate, ...]

    def candidate(self, name: str) -> Candidate:
        """A candidate.

        :raises KeyError: if the site cannot have it.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(f"{self.site!r} cannot have {name!r}")


@dataclass(frozen=True)
class EstimatorChoice:
    """What was chosen at the sites that ask for ``"auto"``, and why: variance of the gradient times time of a step.

    ``sites`` are those with something to choose; ``others`` those that have no score function here. ``draws`` is how
    many gradients were drawn; None if all outcomes were weighted instead. ``variance`` is that of the gradient of
    ``parameters`` with all that was chosen, and ``seconds`` the CPU time of its step in the uncompiled module.
    ``notes`` say which sites cannot be enumerated, and why.
    """

    sites: tuple[SiteChoice, ...]
    others: tuple[str, ...]
    draws: int | None
    variance: float = math.nan
    seconds: float = field(default=math.nan, compare=False)
    notes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    @property
    def estimators(self) -> dict[str, EstimatorName]:
        """The choice as an option ``estimators``, which asks for it without measuring again."""
        return {row.site: row.chosen for row in self.sites}

    def site(self, name: str) -> SiteChoice:
        """The choice at a site.

        :raises KeyError: if there was nothing to choose.
        """
        for row in self.sites:
            if row.site == name:
                return row
        raise KeyError(f"nothing was chosen at {name!r}")

    def and_later(self, later: EstimatorChoice) -> EstimatorChoice:
        """The choice, and that of further sites, which the program has had in a later call."""
        sites, others = self.sites + later.sites, self.others + later.others
        draws, notes = later.draws or self.draws, self.notes + later.notes
        return EstimatorChoice(sites, others, draws, later.variance, later.seconds, notes, later.parameters)

    def _table(self) -> Table:
        names = list(dict.fromkeys(candidate.name for row in self.sites for candidate in row.candidates))
        rows = []
        times: dict[str, str] = {}
        for row in self.sites:
            own = {candidate.name: candidate for candidate in row.candidates}
            times |= {name: f"x {candidate.time:.3g}" for name, candidate in own.items()}
            rows.append((row.site, row.chosen, *(f"{own[name].variance:.4g}" if name in own else "" for name in names)))
        if rows:
            rows.append(("time of a step", "", *(times[name] for name in names)))
        if self.others:
            rows.append((", ".join(self.others), "no score function, nothing to choose"))
        title = "the choice with the least variance of the gradient x time of a step"
        drawn = f", from {self.draws} gradients" if self.draws else ""
        return Table(title + drawn, ("site", "chosen", *names), tuple(rows), frozenset(range(2, 2 + len(names))))

    def __str__(self) -> str:
        return "\n".join([str(self._table()), *self.notes])

    def _repr_html_(self) -> str:
        return self._table().to_html() + "".join(f"<p>{escape(note)}</p>" for note in self.notes)
