"""What would lower the variance that a site's score function brings: another baseline, or none of its draws."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist

from sgc.graph import keys
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import SiteNode
from sgc.passes.objectives.every_cost import EveryCostNode

_SMALL_GAIN = 1.05
"""A baseline without which the variance is less than this many times larger does next to nothing."""


@dataclass(frozen=True)
class SiteVariance:
    """What one site's term of the surrogate has to do with the variance.

    ``variance`` is the covariance of the term's gradient with the whole gradient, so that those of all terms add up to
    the whole variance; it is negative where the term lowers it. The others are what the whole variance would be if this
    site alone had no baseline; if its score function were multiplied by all costs, without a baseline; if it had a
    decaying average that has settled (with Pyro's ``baseline_beta`` of 0.9), or a leave-one-out baseline, in the place
    of what it has. None where that is what it has, or cannot be had.
    """

    site: str
    variance: float
    without_baseline: float | None
    without_rao_blackwellisation: float | None
    with_decaying_average: float | None = None
    with_leave_one_out: float | None = None


def remedy(graph: StochasticGraph, row: SiteVariance, total: float) -> tuple[str, str | None]:
    """What to do about a site: a text, and the baseline that is advised in it, as the option ``estimators`` names it.

    In the text ``{asked}`` stands for that option, ``{enumerated}`` for the one that sums over the site's values.

    :param total: the variance of the whole gradient.
    """
    if isinstance(graph.downstream_cost(row.site), EveryCostNode):
        return (
            "multiplied by every cost, without a baseline: a TraceGraph_ELBO has downstream costs and baselines",
            None,
        )
    if keys.NORMALISED_WEIGHT in graph:
        return 'multiplied by the particle\'s weight, without a baseline: objective="iwae" has one', None
    if keys.GAIN in graph:
        return (
            "less the bound of the other particles, the one baseline that this bound has: "
            'objective="elbo" has one for each site, of the costs that depend on it alone',
            None,
        )
    better = _better(row, total)
    leave_one_out = "" if graph.particles.count > 1 else ", or with num_particles=2 or more 'leave-one-out'"
    if row.without_baseline is None and better is not None:
        text = f"without a baseline: give one, {{asked}}, or an nn_baseline{leave_one_out}"
    elif row.without_baseline is None:
        text = (
            "without a baseline, and an average of its costs would be of little use: more particles divide the "
            f"variance by their number, an nn_baseline may know more{leave_one_out}"
        )
    elif row.without_baseline < _SMALL_GAIN * total:
        other = "take {asked}" if better is not None else "more particles divide the variance by their number"
        text = f"with baselines that do next to nothing: train them longer, give them other inputs, or {other}"
    elif better is not None:
        text = "with baselines that help; {asked} would help more"
    else:
        text = "with baselines that help: more particles divide what is left by their number"
    return f"{text}{_instead_of_draws(graph, row.site)}", better


def _better(row: SiteVariance, total: float) -> str | None:
    """The baseline that would lower the variance most, as the option ``estimators`` names it, if it is worth it."""
    others = {"decaying average": row.with_decaying_average, "leave-one-out": row.with_leave_one_out}
    known = {option: value for option, value in others.items() if value is not None}
    best = min(known, key=known.__getitem__, default=None)
    return None if best is None or _SMALL_GAIN * known[best] > total else best


def _instead_of_draws(graph: StochasticGraph, site: str) -> str:
    """That the values may be summed over, where the site is of a distribution of few and one value for each entry."""
    node = graph.payload(site)
    assert isinstance(node, SiteNode)
    kind = getattr(dist, node.distribution, None)
    if not getattr(kind, "has_enumerate_support", False):
        return ""
    own = len([size for size in node.shape if size != 1]) - ("OneHot" in node.distribution)
    return "; or sum over its values, {enumerated}" if own <= len(node.plates) else ""
