"""Chooses at sites that ask for ``"auto"`` whether they are enumerated, beside the baselines of the others.

A site that is enumerated is another program, for what is drawn below it is drawn for each value. So a draft of the
program is captured for each of a few sets of sites: none, all together, each by itself; in each draft the other sites
have the baselines that are best there, and of the drafts the one with the least variance times time is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from sgc.config import ENUMERATE
from sgc.graph.plan import Plan, SiteRequest
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.variance.choice_report import Candidate, EstimatorChoice, SiteChoice
from sgc.runtime.variance.estimator_choice import AS_FAST, AS_GOOD, choose

_LARGEST = 2**18
"""Sites whose density would have more elements than this, for all values, are not tried."""

_BY_THEMSELVES = 6
"""Up to how many sites are also tried one by one, where some variance is left with all of them enumerated."""

_NOTHING = 1e-9
"""A variance that is less than this part of another is rounding."""

Sites = tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """The program with some of the asking sites enumerated, the others without a baseline; and its inputs."""

    specialization: Specialization
    tensors: list[Tensor]
    plan: Plan


def choose_with_enumeration(
    drafted: Callable[[Sites], Draft], requests: Iterable[SiteRequest], asking: Sites
) -> EstimatorChoice:
    """Measure drafts and choose.

    :param drafted: captures the program with these sites enumerated.
    :param requests: what all sites ask for.
    :param asking: the sites that ask for ``"auto"``.
    """
    choices: dict[Sites, EstimatorChoice] = {}
    notes: dict[str, None] = {}

    def measure(sites: Sites) -> None:
        try:
            draft = drafted(sites)
        except ValueError as error:  # an EnumerationError, or Pyro's check of shapes
            if not sites:
                raise
            notes[f"{', '.join(sites)} cannot be enumerated: {str(error).partition(chr(10))[0]}"] = None
            return
        others = (site for site in asking if site not in sites)
        parameters = choices[()].parameters if sites else None
        choices[sites] = choose(draft.specialization, draft.tensors, draft.plan, others, parameters)

    measure(())
    scored = [row.site for row in choices[()].sites]
    if not scored:
        return choices[()]
    tables = {r.name: r.table for r in requests if r.table is not None and r.name in scored}
    names = tuple(name for name, table in tables.items() if table <= _LARGEST)
    if names:
        measure(names)
    settled = names in choices and choices[names].variance <= _NOTHING * choices[()].variance
    if 1 < len(names) <= _BY_THEMSELVES and not settled:
        for name in names:
            measure((name,))
    fastest = min(choice.seconds for choice in choices.values())
    times = {sites: choice.seconds / fastest for sites, choice in choices.items()}
    times = {sites: time if time >= AS_FAST else 1.0 for sites, time in times.items()}
    products = {sites: choice.variance * times[sites] for sites, choice in choices.items()}
    simple = sorted(choices, key=len)
    best = next(sites for sites in simple if products[sites] <= AS_GOOD * min(products.values()))
    rows = tuple(_rows(choices, times, best))
    return replace(choices[best], sites=rows, others=choices[()].others, notes=tuple(notes))


def _rows(choices: dict[Sites, EstimatorChoice], times: dict[Sites, float], best: Sites) -> Iterator[SiteChoice]:
    """A row for each site: with the other sites as they were chosen; if it is enumerated, beside those of no site."""
    chosen = {row.site: row for row in choices[best].sites}
    for row in choices[()].sites:
        own = chosen.get(row.site, row)
        tried = [sites for sites in (best, (row.site,), *choices) if row.site in sites and sites in choices]
        candidates = own.candidates
        if tried:
            figures = choices[tried[0]]
            candidates = (*candidates, Candidate(ENUMERATE, figures.variance, times[tried[0]]))
        yield SiteChoice(row.site, ENUMERATE if row.site in best else own.chosen, candidates)
