"""The passes of each objective in their order: every statistical decision, from the bare data flow to the surrogate."""

from __future__ import annotations

from collections.abc import Callable

from sgc.config import Objective
from sgc.graph.graph import StochasticGraph
from sgc.graph.plan import Plan
from sgc.graph.verify import verify
from sgc.passes.baselines.add_baselines import add_baselines
from sgc.passes.check_enumeration import check_enumeration
from sgc.passes.choose_estimators import choose_estimators
from sgc.passes.downstream import plan_downstream_costs
from sgc.passes.masked_scores import mask_scores
from sgc.passes.objectives.closed_forms import (
    check_reparameterized,
    leave_out_guesses_of_observed,
    take_closed_forms,
    take_exact_closed_forms,
)
from sgc.passes.objectives.every_cost import plan_every_cost
from sgc.passes.objectives.evidence_lower_bound import add_elbo
from sgc.passes.objectives.expected_cost import add_expected_elbo
from sgc.passes.objectives.renyi_bound import add_importance_weighted_bound, add_renyi_bound

Pass = Callable[[StochasticGraph, Plan], None]

PASSES: dict[Objective, tuple[Pass, ...]] = {
    "elbo": (
        choose_estimators,  # pathwise, partially pathwise, score function or enumerated, for each latent site
        check_enumeration,  # what depends on an enumerated site has an element for each of its values
        mask_scores,  # the entries of a sample that each score function is of
        take_exact_closed_forms,  # two densities become one cost, where that is asked for and proved right
        plan_downstream_costs,  # what each score function is multiplied by: expectations, with shared partial sums
        add_baselines,  # what is subtracted from it
        add_elbo,  # the objective, and the scalar whose gradient is the estimator of its gradient
    ),
    "Trace_ELBO": (
        choose_estimators,
        mask_scores,
        plan_every_cost,  # each score function is multiplied by all costs
        add_elbo,
    ),
    "TraceEnum_ELBO": (
        choose_estimators,  # enumerated, DiCE or pathwise
        add_expected_elbo,  # the sum of the expected costs, which the program computes
    ),
    "TraceMeanField_ELBO": (
        check_reparameterized,  # no site may need a score function
        choose_estimators,
        leave_out_guesses_of_observed,
        take_closed_forms,  # two densities become one cost, where they have a closed form
        add_elbo,
    ),
    "RenyiELBO": (
        choose_estimators,
        mask_scores,
        add_renyi_bound,  # the bound of all particles; scores times normalised weights
    ),
    "iwae": (
        choose_estimators,
        mask_scores,
        add_importance_weighted_bound,  # the same of order 0; scores times what a particle adds to it
    ),
}


def run_passes(graph: StochasticGraph, plan: Plan) -> StochasticGraph:
    """Run every pass of the plan's objective on a copy of the graph, and check its laws after each.

    :raises GraphError: if a pass leaves the graph illegal.
    """
    graph = graph.copy()
    verify(graph)
    for apply in PASSES[plan.objective]:
        apply(graph, plan)
        verify(graph)
    return graph
