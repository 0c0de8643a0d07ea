"""Gives each latent site its estimator: the one that it asks for, or the first that can be had."""

from __future__ import annotations

from dataclasses import replace

from sgc.errors import EstimatorError, SiteMismatchError
from sgc.graph.estimator_rules import EstimatorRule, Sampler, rule_of
from sgc.graph.graph import StochasticGraph, all_provenances
from sgc.graph.nodes import Estimator, SiteNode
from sgc.graph.plan import ENUMERATING, WITH_BASELINES, Plan
from sgc.graph.program import Site, SiteKind
from sgc.passes.estimators import estimators_beside, estimators_of


def choose_estimators(graph: StochasticGraph, plan: Plan) -> None:
    """Set ``estimator`` on every latent site.

    :raises SiteMismatchError: if a latent site without reparameterisation is in the model only, so that there
        is no guide density whose score could be taken.
    :raises EstimatorError: if the estimator that a site asks for cannot be had there.
    """
    assert graph.program is not None
    for name in graph.sites(SiteKind.LATENT):
        node = graph.payload(name)
        assert isinstance(node, SiteNode)
        site = graph.program.site(name)
        if site.guide is None and not node.has_rsample and site.enumerated is None:
            raise SiteMismatchError(
                f"the latent {node.distribution} is in the model but not in the guide",
                site=name,
                source=node.source,
                remedy=_remedy(plan),
            )
        of_site = plan.at(name)
        asked = of_site.estimator is not None or _asks_for_values(site, plan)
        graph.replace(replace(node, estimator=_rule(site, plan).estimator, asked=asked, measured=of_site.measured))


def _rule(site: Site, plan: Plan) -> EstimatorRule:
    sampler = _sampler(site)
    asked = plan.at(site.name).estimator
    if asked is None and _asks_for_values(site, plan):  # its name depends on samples, and was another when it was asked
        asked = Estimator.ENUMERATED
    if asked is None:
        return next(rule for rule in estimators_of(plan.objective) if rule.refuses(sampler) is None)
    rule = rule_of(asked)
    is_other = sampler.enumerated and not rule.needs.all_values
    reason = "the site is enumerated" if is_other else rule.refuses(sampler)
    if reason is not None:
        remedy = "leave it out: the site then has the estimator that its distribution allows"
        raise EstimatorError(
            f"the estimator '{asked.value}' cannot be had here: {reason}",
            site=site.name,
            source=site.source,
            remedy=remedy,
        )
    return rule


def _asks_for_values(site: Site, plan: Plan) -> bool:
    """Whether the site was captured with all its values beside sites with other estimators, which is asked for."""
    return site.has_all_values and plan.objective not in ENUMERATING


def _remedy(plan: Plan) -> str:
    remedy = "sample it in the guide too, or condition the model on a value"
    if plan.objective not in ENUMERATING | WITH_BASELINES:
        return remedy
    return f"{remedy}; if its support is finite, infer={{'enumerate': 'parallel'}} at the statement sums it out"


def _sampler(site: Site) -> Sampler:
    has_score_function = site.guide is not None and site.guide.score_function is not None
    return Sampler(site.distribution, site.has_rsample, has_score_function, site.has_all_values)


def why_chosen(graph: StochasticGraph, site: str) -> str:
    """Why a latent site has its estimator: it asks for it, or others cannot be had there, those before it first."""
    if graph.is_measured(site):
        return "it was measured, with its baseline"
    if graph.is_asked(site):
        return "it is asked for"
    assert graph.program is not None
    sampler = _sampler(graph.program.site(site))
    if sampler.enumerated:
        return "infer['enumerate'] asks for it"
    chosen = graph.estimator(site)
    rules = estimators_beside(chosen)
    place = next(at for at, rule in enumerate(rules) if rule.estimator == chosen)
    refusals = [rule.refuses(sampler) for rule in (*rules[:place], *rules[:place:-1])]
    return next((refusal for refusal in refusals if refusal is not None), "it comes first")


def scored_sites(graph: StochasticGraph) -> tuple[str, ...]:
    """The latent sites with a score-function term, in the order in which their costs first appear."""
    scored = {name for name in graph.sites(SiteKind.LATENT) if graph.estimator(name).scored}
    order = {name: position for position, name in enumerate(graph.sites())}
    ordered: dict[str, None] = {}
    provenance = all_provenances(graph)
    for cost in graph.costs():
        upstream = provenance[cost] & scored
        ordered.update(dict.fromkeys(sorted(upstream, key=order.__getitem__)))
    return tuple(ordered)
