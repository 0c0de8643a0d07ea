"""The passes in their order: every statistical decision, from the bare data flow to the surrogate."""

from __future__ import annotations

from collections.abc import Callable

from sgc.graph.graph import StochasticGraph
from sgc.graph.verify import verify
from sgc.passes.baselines import add_baselines
from sgc.passes.downstream import plan_downstream_costs
from sgc.passes.estimators import choose_estimators
from sgc.passes.masked_scores import mask_scores
from sgc.passes.surrogate_terms import add_surrogate_terms

PASSES: tuple[Callable[[StochasticGraph], None], ...] = (
    choose_estimators,  # pathwise, partially pathwise or score function, for each latent site
    mask_scores,  # the entries of a sample that each score function is of
    plan_downstream_costs,  # what each score function is multiplied by, with shared partial sums
    add_baselines,  # what is subtracted from it
    add_surrogate_terms,  # the scalar whose gradient is the estimator
)


def run_passes(graph: StochasticGraph) -> StochasticGraph:
    """Run every pass on a copy of the graph, and check its laws after each.

    :raises GraphError: if a pass leaves the graph illegal.
    """
    graph = graph.copy()
    verify(graph)
    for apply in PASSES:
        apply(graph)
        verify(graph)
    return graph
