"""What an estimator of ``sgc/passes/estimators`` is, and where the verifier and the printed graph find it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sgc.graph.derived_nodes import SurrogateTermNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator

if TYPE_CHECKING:
    from sgc.graph.drawing.wording import Wording


@dataclass(frozen=True)
class Sampler:
    """What a latent site's distribution in the guide has: a reparameterised sample, a score function, or both.

    ``enumerable`` says that its support is finite and can be listed, ``enumerated`` that the site has all its values
    at once.
    """

    distribution: str
    has_rsample: bool
    has_score_function: bool
    enumerated: bool = False
    enumerable: bool = False

    @property
    def is_pathwise(self) -> bool:
        """Whether a site that asks for nothing needs no score function."""
        return self.has_rsample and not self.has_score_function


@dataclass(frozen=True)
class Needs:
    """What an estimator needs of the capture at its site.

    ``score_function``: the score function is recorded. ``detached_sample``: no gradient passes through the sample, also
    where its distribution has an ``rsample``. ``all_values``: the site has all its values at once.
    """

    score_function: bool = False
    detached_sample: bool = False
    all_values: bool = False


class EstimatorRule(ABC):
    """One estimator: what it needs of the capture, which nodes it adds, its laws and its words.

    How its nodes are emitted is the rule of their types (:meth:`sgc.graph.nodes.Payload.compute`).
    """

    estimator: ClassVar[Estimator]
    needs: ClassVar[Needs] = Needs()

    @property
    def asked_as(self) -> str | None:
        """What a site says to ask for it; None if it cannot be asked for by ``infer["estimator"]``."""
        return self.estimator.value

    @abstractmethod
    def refuses(self, sampler: Sampler) -> str | None:
        """Why it cannot estimate the gradient at such a site; None if it can."""

    def refuses_request(self, sampler: Sampler) -> str | None:
        """Why a site whose distribution is this one cannot ask for it; None if it can."""
        return self.refuses(sampler)

    def add_terms(self, graph: StochasticGraph, site: str) -> list[SurrogateTermNode]:
        """Add its nodes for a site, and return its terms of the surrogate, which are not in the graph yet.

        The graph has the site's downstream cost and baseline by then, if the estimator is scored.
        """
        return []

    def breaches(self, graph: StochasticGraph, site: str) -> Iterator[str]:
        """Its laws: what is wrong at a site that has it, in a graph that need not have been through all passes."""
        yield from ()

    def words(self, graph: StochasticGraph, site: str, wording: Wording) -> Iterator[str]:
        """How the gradient is estimated at a site, and at all that it is folded with, in lines of the printed graph."""
        yield f"gradient: {self.estimator.value}"


_RULES: dict[Estimator, EstimatorRule] = {}


def register(rule: EstimatorRule) -> None:
    """Let the verifier and the printed graph know an estimator."""
    _RULES[rule.estimator] = rule


def rule_named(name: object) -> EstimatorRule | None:
    """A rule that a site asks for by this name, under any objective; None if there is none."""
    return next((rule for rule in _RULES.values() if rule.asked_as == name), None)


def registered_estimators() -> tuple[str, ...]:
    """The names of all estimators, of any objective."""
    return tuple(estimator.value for estimator in _RULES)


def rule_of(estimator: Estimator) -> EstimatorRule:
    """The rule of an estimator.

    :raises KeyError: if it is in no list of ``sgc/passes/estimators``.
    """
    return _RULES[estimator]
