"""The score-function estimator of ``TraceEnum_ELBO``: DiCE (Foerster et al. 2018).

Each cost that may depend on the site is multiplied by ``exp(log q - detach(log q))``, which is one, and whose gradient
is the score function. What may depend on it is told by the plates alone, as in Pyro.
"""

from __future__ import annotations

from typing import ClassVar

from sgc.graph.estimator_rules import EstimatorRule, Needs, Sampler
from sgc.graph.nodes import Estimator
from sgc.passes.estimators.score_function import ScoreFunction


class DiceFactor(EstimatorRule):
    """Adds nothing to the surrogate: the factors are in the weights of the expected costs."""

    estimator: ClassVar[Estimator] = Estimator.DICE
    needs: ClassVar[Needs] = Needs(score_function=True, detached_sample=True)

    @property
    def asked_as(self) -> str:
        return Estimator.SCORE_FUNCTION.value

    def refuses(self, sampler: Sampler) -> str | None:
        return None if sampler.has_score_function else f"a {sampler.distribution} is reparameterised"

    def refuses_request(self, sampler: Sampler) -> str | None:
        return ScoreFunction().refuses_request(sampler)
