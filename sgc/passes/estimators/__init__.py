"""The estimators of the gradient at a latent site.

Here belongs a file for each: what it needs of the capture, its nodes and their rules, its laws, its words. A new one
needs its file and its line in :data:`ESTIMATORS`.
"""

from __future__ import annotations

from sgc.graph.estimator_rules import EstimatorRule, register
from sgc.passes.estimators.partially_pathwise import PartiallyPathwise
from sgc.passes.estimators.pathwise import Pathwise
from sgc.passes.estimators.score_function import ScoreFunction

ESTIMATORS: tuple[EstimatorRule, ...] = (
    Pathwise(),
    PartiallyPathwise(),
    ScoreFunction(),
)
"""All estimators. A site that asks for none has the first that does not refuse it."""

for _rule in ESTIMATORS:
    register(_rule)
