"""The estimators of the gradient at a latent site.

Here belongs a file for each: what it needs of the capture, its nodes and their rules, its laws, its words. A new one
needs its file and its line in :data:`ESTIMATORS`.
"""

from __future__ import annotations

from sgc.config import Objective
from sgc.graph.estimator_rules import EstimatorRule, register
from sgc.graph.nodes import Estimator
from sgc.graph.plan import ENUMERATING
from sgc.passes.estimators.dice import DiceFactor
from sgc.passes.estimators.enumerated import EnumeratedSite
from sgc.passes.estimators.partially_pathwise import PartiallyPathwise
from sgc.passes.estimators.pathwise import Pathwise
from sgc.passes.estimators.score_function import ScoreFunction

ESTIMATORS: tuple[EstimatorRule, ...] = (
    Pathwise(),
    PartiallyPathwise(),
    ScoreFunction(),
    EnumeratedSite(),
)
"""All estimators. A site that asks for none has the first that does not refuse it."""

OF_ENUMERATION: tuple[EstimatorRule, ...] = (
    EnumeratedSite(),
    DiceFactor(),
    Pathwise(),
)
"""Those of the objectives that enumerate, likewise."""

for _rule in {rule.estimator: rule for rule in (*ESTIMATORS, *OF_ENUMERATION)}.values():
    register(_rule)


def estimators_of(objective: Objective) -> tuple[EstimatorRule, ...]:
    """The estimators that an objective has."""
    return OF_ENUMERATION if objective in ENUMERATING else ESTIMATORS


def estimators_beside(estimator: Estimator) -> tuple[EstimatorRule, ...]:
    """The list that an estimator was chosen from, at a site that asks for none."""
    unasked = tuple(rule for rule in ESTIMATORS if not rule.needs.all_values)
    return next(rules for rules in (unasked, OF_ENUMERATION) if estimator in [rule.estimator for rule in rules])
