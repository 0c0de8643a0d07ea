"""Finds baselines, and options of one, that have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator, SiteNode
from sgc.graph.program import PARTICLE_PLATE


def idle_baselines(graph: StochasticGraph) -> Iterator[tuple[SiteNode, str]]:
    """The sites with a baseline, or an option of one, that has no effect, and why."""
    assert graph.program is not None
    for site in graph.of_type(SiteNode):
        declared = graph.program.site(site.key)
        options = declared.baseline
        has_one = options is not None and (
            options.kind is not None or options.decaying_average or options.leave_one_out
        )
        if declared.baseline_in_model and not has_one:
            yield site, "the baseline of the model's statement has no effect, only the guide's has: give it there"
        if options is None:
            continue
        if options.idle_beta:
            remedy = "add use_decaying_avg_baseline=True, or leave it out"
            yield site, f"baseline_beta has no effect without a decaying average: {remedy}"
        plates = [plate for plate in declared.plates if plate.vectorized and plate.name != PARTICLE_PLATE]
        if options.per_datum and not plates:
            yield site, "average_per_datum has no effect, because the site is in no plate: leave it out"
        if has_one and graph.baseline(site.key) is None:
            pathwise = site.estimator == Estimator.PATHWISE
            reason = "the site is pathwise, without a score function" if pathwise else "no cost depends on its sample"
            yield site, f"the baseline has no effect, because {reason}: leave it out"
