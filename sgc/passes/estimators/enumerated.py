"""The exact estimator: the expectation over all values of a discrete site.

In the guide each cost is weighted by the probability of the values that it is of; the weights are differentiated, so
that the gradient has no variance of the site's (the local expectation gradient: Titsias and Lázaro-Gredilla 2015,
"Local Expectation Gradients for Black Box Variational Inference"). In the model the site is summed out of the densities
that it is in, under ``TraceEnum_ELBO``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from sgc.config import ENUMERATE, EstimatorName
from sgc.graph.estimator_rules import EstimatorRule, Needs, Sampler
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator

if TYPE_CHECKING:
    from sgc.graph.drawing.wording import Wording


class EnumeratedSite(EstimatorRule):
    """Adds nothing to the surrogate: the expected costs are differentiated through their weights."""

    estimator: ClassVar[Estimator] = Estimator.ENUMERATED

    needs: ClassVar[Needs] = Needs(all_values=True)

    @property
    def asked_as(self) -> EstimatorName:
        return ENUMERATE

    def refuses(self, sampler: Sampler) -> str | None:
        return None if sampler.enumerated else "the site is not enumerated"

    def refuses_request(self, sampler: Sampler) -> str | None:
        return None if sampler.enumerable else f"a {sampler.distribution} has no finite support that could be listed"

    def words(self, graph: StochasticGraph, site: str, wording: Wording) -> Iterator[str]:
        assert graph.program is not None
        known = graph.program.site(site)
        assert known.enumerated is not None
        values = f"its {known.enumerated.size} values"
        how = "summed out of the model" if known.guide is None else "weighted by their probabilities in the guide"
        where = "one after another" if known.enumerated.dim is None else "side by side"
        measured = ", chosen by measurement" if graph.is_measured(site) else ""
        yield f"gradient: exact, by enumeration{measured}: {values} {where}, {how}"
