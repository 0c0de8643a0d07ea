"""The ELBO as an expectation over enumerated values (Pyro's ``TraceEnum_ELBO``): value and surrogate are one.

The costs that it sums are computed by the program: each weighted by the probabilities of the guide's enumerated values,
those of the model's summed out before (``MarginalCostNode``).
"""

from __future__ import annotations

from sgc.graph import keys
from sgc.graph.derived_nodes import MeanNode, NegationNode, TotalNode
from sgc.graph.enumeration_nodes import ExpectedCostNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.plan import Plan


def add_expected_elbo(graph: StochasticGraph, plan: Plan) -> None:
    """Add the nodes from the expected costs to ``loss`` and ``surrogate_loss``."""
    costs = tuple(node.key for node in graph.of_type(ExpectedCostNode))
    graph.add(TotalNode(keys.ELBO, (), costs), costs)
    mean = keys.mean_over_particles(keys.ELBO)
    graph.add(MeanNode(mean, (), plan.particles, keys.ELBO), [keys.ELBO])
    for loss in (keys.LOSS, keys.SURROGATE_LOSS):
        graph.add(NegationNode(loss, (), mean), [mean])
