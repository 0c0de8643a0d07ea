"""Exchanges the two densities of a site for their closed form: ``log p(z) - log q(z)`` for ``-KL(q(z) || p(z))``.

Given the values of all parents of both densities, z has the distribution q(z), provided that none of these parents is
downstream of z in the guide: then the closed form is the conditional expectation of the two, and the expectation of
the ELBO stays. Where the model's density of z depends on what the guide draws downstream of z, the closed form is
another number. As every dependence is in the graph, that is so if and only if z is upstream of the closed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sgc.errors import ReparameterizationError
from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.closed_form import ClosedFormNode
from sgc.graph.derived_nodes import SurrogateTermNode
from sgc.graph.enumerated_values import factors_of
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, Payload, ScorePartNode, SiteNode
from sgc.graph.plan import Plan
from sgc.graph.program import SiteKind


@dataclass(frozen=True)
class DivergenceNode(CostNode):
    """The cost that stands for both densities of a site; ``is_exact`` says that the graph proves it right."""

    kind: ClassVar[str] = "divergence"

    is_exact: bool

    @property
    def noun(self) -> str:
        return "divergence"

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """It is exact if and only if its own site is not upstream; and it stands alone for the site."""
        if self.is_exact == (self.site in graph.provenance(self.key)):
            depends = "does not depend" if self.is_exact else "depends"
            yield f"{self.key!r} says that it {depends} on the sample of its own site, and the graph does not"
        for key in (keys.cost_key(self.site, +1), keys.cost_key(self.site, -1)):
            if key in graph:
                yield f"{self.key!r} stands for {key!r}, which is a cost beside it"

    def remark(self, graph: StochasticGraph) -> str:
        if self.is_exact:
            return ", in closed form"
        below = " and ".join(repr(parent.key) for parent in parents_below(graph, self))
        return f", in closed form, which is wrong: p({self.site}) depends on {below}, downstream of '{self.site}'"


@dataclass(frozen=True)
class DivergenceTermNode(SurrogateTermNode):
    """The sum of all elements of a closed form."""

    noun: ClassVar[str] = "divergence term"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (DivergenceNode,)

    @property
    def subtracted(self) -> bool:
        return True

    def compute(self, run: Arithmetic) -> Value:
        """The sum, the one that the ELBO has."""
        return run.total(self.operands[0])


def check_reparameterized(graph: StochasticGraph, plan: Plan) -> None:
    """Refuse what Pyro's ``TraceMeanField_ELBO`` refuses: latent sites whose gradient is not pathwise alone.

    :raises ReparameterizationError: if the guide has one.
    """
    assert graph.program is not None
    for site in graph.program.sites:
        guide = site.guide
        if guide is None or site.kind is not SiteKind.LATENT or site.observed_in_model:
            continue
        if site.has_rsample and guide.entropy_term is not None and guide.score_function is None:
            continue
        raise ReparameterizationError(
            "All distributions in the guide must be fully reparameterized. "
            f"A {site.distribution} needs a score function here",
            site=site.name,
            source=site.source,
            remedy="take TraceGraph_ELBO or Trace_ELBO, which have one",
        )


def take_closed_forms(graph: StochasticGraph, plan: Plan) -> None:
    """Let each closed form stand for the two densities of its site; as in Pyro, whether that is right or not."""
    for form in list(graph.of_type(ClosedFormNode)):
        _take(graph, form)


def take_exact_closed_forms(graph: StochasticGraph, plan: Plan) -> None:
    """Let those stand for the two densities that are proved right; the others are dropped.

    The cost then no longer depends on the site's own sample, so that it leaves the site's downstream costs, and those
    above the site depend on less noise.
    """
    assert graph.program is not None
    factors = factors_of(graph.program.marginals)
    for form in list(graph.of_type(ClosedFormNode)):
        site = graph.program.site(form.site)
        assert site.closed_form is not None
        is_cost = form.site not in factors  # else p(z) depends on what is summed out of the model
        if is_cost and _is_exact(graph, form) and site.closed_form.weighted_alike and site.kind is SiteKind.LATENT:
            _take(graph, form)
        else:
            graph.remove_node(form.key)


def _is_exact(graph: StochasticGraph, form: ClosedFormNode) -> bool:
    return form.site not in graph.provenance(form.key)


def _take(graph: StochasticGraph, form: ClosedFormNode) -> None:
    exact, parents = _is_exact(graph, form), list(graph.predecessors(form.key))
    cost = graph.payload(keys.cost_key(form.site, -1))
    assert isinstance(cost, CostNode)
    entropy_term = keys.score_part("entropy_term", form.site)
    graph.remove_nodes_from([form.key, cost.key, keys.cost_key(form.site, +1), entropy_term])
    key = keys.divergence(form.site)
    graph.add(DivergenceNode(key, form.shape, form.fx, form.site, -1, cost.plates, cost.source, exact), parents)


def leave_out_guesses_of_observed(graph: StochasticGraph, plan: Plan) -> None:
    """Of sites that the guide draws and the model has observed Pyro's ``TraceMeanField_ELBO`` takes ``log p`` alone."""
    assert graph.program is not None
    for site in graph.program.sites:
        if site.observed_in_model:
            parts = [part.key for part in graph.of_type(ScorePartNode) if part.site == site.name]
            graph.remove_nodes_from([*parts, keys.cost_key(site.name, -1)])


def parents_below(graph: StochasticGraph, divergence: DivergenceNode) -> Iterator[SiteNode]:
    """The sites that a closed form is computed of and that are downstream of its own site."""
    for key in graph.predecessors(divergence.key):
        parent = graph.payload(key)
        if isinstance(parent, SiteNode) and divergence.site in graph.provenance(key):
            yield parent


def wrong_closed_forms(graph: StochasticGraph) -> Iterator[tuple[SiteNode, str]]:
    """The sites whose closed form is not the expectation of their densities, and why."""
    assert graph.program is not None
    for divergence in graph.of_type(DivergenceNode):
        site, form = graph.payload(divergence.site), graph.program.site(divergence.site).closed_form
        assert isinstance(site, SiteNode) and form is not None
        for parent in parents_below(graph, divergence):
            yield (
                site,
                f"{divergence.key} is not the expectation of log p({site.key}) - log q({site.key}), as Pyro's "
                f"TraceMeanField_ELBO takes it to be: in the model the density of '{site.key}'{_at(form.in_model)} "
                f"depends on '{parent.key}', which the guide draws downstream of '{site.key}'{_at(parent.source)}. "
                f"The loss is Pyro's; for the ELBO take TraceGraph_ELBO or Trace_ELBO, or let the guide draw "
                f"'{parent.key}' first",
            )
        if form.weighted_alike is False:
            yield (
                site,
                f"the model scales or masks the density of '{site.key}'{_at(form.in_model)} otherwise than the guide, "
                "and Pyro's TraceMeanField_ELBO takes the guide's scale and mask for both densities. The loss is "
                "Pyro's; for the ELBO take TraceGraph_ELBO or Trace_ELBO, or scale and mask both alike",
            )


def _at(source: object) -> str:
    return "" if source is None else f" ({source})"
