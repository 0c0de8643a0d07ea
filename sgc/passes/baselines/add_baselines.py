"""Decides what is subtracted from each downstream cost.

A baseline lowers the variance of the score-function estimator and keeps it unbiased as long as it does not depend on
the sample that it is for (Mnih and Gregor 2014, section 2.2).
"""

from __future__ import annotations

from sgc.graph.graph import StochasticGraph
from sgc.graph.plan import Plan
from sgc.passes.baselines.learned_and_average import add_learned_and_average
from sgc.passes.baselines.leave_one_out import add_leave_one_out, sites_carried_over
from sgc.passes.choose_estimators import scored_sites


def add_baselines(graph: StochasticGraph, plan: Plan) -> None:
    """Add a baseline node for every scored site that asks for one.

    :raises BaselineError: if a baseline would bias the gradient, or has another shape than the downstream cost.
    """
    assert graph.program is not None
    asked = any(site.baseline is not None and site.baseline.leave_one_out for site in graph.program.sites)
    carried_over = sites_carried_over(graph.program) if asked and plan.particles.runs > 1 else frozenset()
    for name in scored_sites(graph):
        options, downstream = graph.program.site(name).baseline, graph.downstream_cost(name)
        assert downstream is not None
        if options is None:
            continue
        if options.leave_one_out:
            add_leave_one_out(graph, name, downstream, plan.particles, carried_over)
        elif options.kind or options.decaying_average:
            add_learned_and_average(graph, name, options, downstream)
