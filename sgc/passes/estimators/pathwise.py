"""The pathwise estimator: a gradient through a reparameterised sample (Kingma and Welling 2014, section 2.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sgc.graph import keys
from sgc.graph.estimator_rules import EstimatorRule, Sampler
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator


class Pathwise(EstimatorRule):
    """Adds nothing to the surrogate: the costs below the site are differentiated through its sample."""

    estimator: ClassVar[Estimator] = Estimator.PATHWISE

    def refuses(self, sampler: Sampler) -> str | None:
        if not sampler.has_score_function:
            return None
        if not sampler.has_rsample:
            return f"a {sampler.distribution} has no reparameterised sample"
        return f"a {sampler.distribution} is a rejection sampler, whose acceptance needs a score function"

    def breaches(self, graph: StochasticGraph, site: str) -> Iterator[str]:
        if keys.score_term(site) in graph:
            yield f"the site {site!r} is not scored and yet has a score term"
