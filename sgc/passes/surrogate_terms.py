"""Adds the terms of the surrogate, whose gradient is the estimator of the ELBO's gradient.

The terms are Pyro's (``TraceGraph_ELBO``, after Schulman et al. 2015, section 3.2): every ``log p``; minus the
entropy term of each guide site, which is ``log q`` where that has a pathwise gradient; each score function
times the detached difference of downstream cost and baseline; minus the squared error of learned baselines.
"""

from __future__ import annotations

from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, ScorePartNode, SurrogateTermNode, TotalNode
from sgc.passes.estimators import scored_sites


def add_surrogate_terms(graph: StochasticGraph) -> None:
    """Add one node for each surrogate term, and the totals ``elbo`` and ``surrogate``."""
    costs = list(graph.of_type(CostNode))
    terms: list[SurrogateTermNode] = []
    for cost in costs:
        if cost.sign > 0:
            terms.append(SurrogateTermNode(f"cost_term({cost.site})", (), "cost", cost.site, (cost.key,)))
    for part in list(graph.of_type(ScorePartNode)):
        if part.part == "entropy_term":
            key = f"entropy_term_of({part.site})"
            terms.append(SurrogateTermNode(key, (), "entropy", part.site, (part.key,)))
    for site in scored_sites(graph):
        downstream, baseline = graph.downstream_cost(site), graph.baseline(site)
        assert downstream is not None
        operands = [f"score_function({site})", downstream.key, *([baseline.key] if baseline else [])]
        terms.append(SurrogateTermNode(f"score_term({site})", (), "score", site, tuple(operands)))
        if baseline is not None and baseline.learned is not None:
            key = f"baseline_term({site})"
            terms.append(SurrogateTermNode(key, (), "baseline", site, (downstream.key, baseline.key)))
    for term in terms:
        graph.add(term, term.operands)
    for key, operands in (("elbo", [cost.key for cost in costs]), ("surrogate", [term.key for term in terms])):
        graph.add(TotalNode(key, (), tuple(operands)), operands)
