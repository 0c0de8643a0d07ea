"""The partially pathwise estimator: a rejection sampler is reparameterised, but for its acceptance.

Its ``ScoreParts`` carry a score function beside the pathwise gradient of its proposal (Naesseth et al. 2017,
"Reparameterization Gradients through Acceptance-Rejection Sampling Algorithms", equation 5).
"""

from __future__ import annotations

from typing import ClassVar

from sgc.graph.estimator_rules import Needs, Sampler
from sgc.graph.nodes import Estimator
from sgc.passes.estimators.score_function import ScoreFunction


class PartiallyPathwise(ScoreFunction):
    """The score function of the acceptance beside a gradient through the sample."""

    estimator: ClassVar[Estimator] = Estimator.PARTIAL
    needs: ClassVar[Needs] = Needs(score_function=True)

    def refuses(self, sampler: Sampler) -> str | None:
        if sampler.has_rsample and sampler.has_score_function:
            return None
        return f"a {sampler.distribution} is no rejection sampler"

    def refuses_request(self, sampler: Sampler) -> str | None:
        return self.refuses(sampler)
