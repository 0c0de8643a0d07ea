"""Decides how the gradient passes through each latent site.

A reparameterised site's gradient is pathwise, any other's is the score function's (Schulman et al. 2015,
theorem 1). A rejection sampler is both at once: its ``ScoreParts`` carry a score function beside the pathwise
gradient of its proposal (Naesseth et al. 2017, "Reparameterization Gradients through Acceptance-Rejection
Sampling Algorithms", equation 5).
"""

from __future__ import annotations

from dataclasses import replace

from sgc.errors import SiteMismatchError
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator, SiteNode
from sgc.graph.program import SiteKind
from sgc.graph.provenance import all_provenances


def choose_estimators(graph: StochasticGraph) -> None:
    """Set ``estimator`` on every latent site.

    :raises SiteMismatchError: if a latent site without reparameterisation is in the model only, so that there
        is no guide density whose score could be taken.
    """
    assert graph.program is not None
    for name in graph.sites(SiteKind.LATENT):
        node = graph.payload(name)
        assert isinstance(node, SiteNode)
        site = graph.program.site(name)
        if site.guide is None:
            if not node.has_rsample:
                raise SiteMismatchError(
                    f"the latent {node.distribution} is in the model but not in the guide",
                    site=name,
                    source=node.source,
                    remedy="sample it in the guide too, or condition the model on a value",
                )
            estimator = Estimator.PATHWISE
        elif site.guide.score_function is None:
            estimator = Estimator.PATHWISE
        else:
            estimator = Estimator.PARTIAL if node.has_rsample else Estimator.SCORE_FUNCTION
        graph.replace(replace(node, estimator=estimator))


def scored_sites(graph: StochasticGraph) -> tuple[str, ...]:
    """The latent sites with a score-function term, in the order in which their costs first appear."""
    scored = {name for name in graph.sites(SiteKind.LATENT) if graph.estimator(name) is not Estimator.PATHWISE}
    order = {name: position for position, name in enumerate(graph.sites())}
    found: dict[str, None] = {}
    provenance = all_provenances(graph)
    for cost in graph.costs():
        upstream = provenance[cost] & scored
        found.update(dict.fromkeys(sorted(upstream, key=order.__getitem__)))
    return tuple(found)
