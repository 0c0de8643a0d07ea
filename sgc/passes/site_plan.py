"""Decides, before the program is captured, what was asked of each site and how the particles are run."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from sgc.config import AUTO, BASELINES, ENUMERATE, Options
from sgc.errors import ArgumentError, BaselineError, EstimatorError
from sgc.graph.estimator_rules import EstimatorRule
from sgc.graph.plan import ENUMERATING, OF_ALL_PARTICLES, WITH_BASELINES, Plan, SitePlan, SiteRequest
from sgc.graph.program import PARTICLE_PLATE, Particles
from sgc.passes.estimators import estimators_of

_UNROLLED = 4
"""Up to how many particles that run one after another are unrolled in the emitted module, which fuses."""

_UNROLLED_AT_MOST = 16
"""Up to how many are where a site needs all of them at once."""

_UNROLLED_FOR_A_BOUND = 64
"""Up to how many are where the objective needs all of them at once."""

_LEAVE_ONE_OUT = "use_leave_one_out"
_OTHER_BASELINES = ("nn_baseline", "baseline_value", "use_decaying_avg_baseline")


def make_plan(requests: Iterable[SiteRequest], options: Options, *, first: bool = False) -> Plan:
    """The plan of a program whose sites ask for this.

    :param first: whether the program was never captured before; later on it may have other sites.
    :raises EstimatorError: if an estimator is unknown, or cannot be had at its site; if the option ``estimators`` names
        none of the sites.
    :raises BaselineError: if a leave-one-out baseline has no other particles, too many, or another baseline beside it.
    :raises ArgumentError: if the objective needs more particles in one program than are unrolled.
    """
    requests = list(requests)
    if first:
        _check_names(requests, options)
    for request in requests:
        if request.in_model:
            _check_in_model(request)
    to_measure = [request for request in requests if request.estimator == AUTO]
    for request in to_measure:
        _check_auto(request, options)
    left_out = [request for request in requests if _LEAVE_ONE_OUT in request.baseline]
    if options.objective not in WITH_BASELINES:
        left_out = []
    for request in left_out:
        _check_leave_one_out(request, options)
    of_particles = [request for request in left_out if not request.samples]
    together = bool(of_particles or to_measure) and options.num_particles <= _UNROLLED_AT_MOST
    if options.objective in OF_ALL_PARTICLES:
        _check_bound(options)
        together = True
    rules = {rule.asked_as: rule for rule in estimators_of(options.objective) if rule.asked_as is not None}
    if options.objective not in WITH_BASELINES:
        rules.pop(ENUMERATE, None)
    measured = {site for site, _ in options.measured}
    for request in requests:
        if request.estimator == ENUMERATE and options.objective not in WITH_BASELINES:
            raise _not_by_the_estimator(request, options)
    sites = {r.name: _site_plan(r, rules, r.name in measured) for r in requests if r.estimator is not None}
    particles = _particles(options, together=together)
    several_samples = any(request.samples for request in left_out)
    return Plan(sites, particles, options.objective, options.alpha, options.analytic_kl, several_samples)


def undecided(requests: Iterable[SiteRequest]) -> tuple[str, ...]:
    """The sites at which estimator and baseline are still to be chosen by measurement."""
    return tuple(request.name for request in requests if request.estimator == AUTO)


def _check_in_model(request: SiteRequest) -> None:
    if request.estimator != ENUMERATE:
        raise EstimatorError(
            f"the estimator {request.estimator!r} cannot be had at a site that the guide does not draw",
            site=request.name,
            source=request.source,
            remedy=f"sample it in the guide; or take '{ENUMERATE}', if its support is finite, which sums it out of the "
            "model",
        )


def _check_names(requests: list[SiteRequest], options: Options) -> None:
    names = [request.name for request in requests]
    asked = {pattern for pattern, _ in options.estimators}
    for request in requests:
        if request.in_random_loop is not None and request.name in asked:
            raise _differs_by_run(request)
    for pattern, wanted in options.estimators:
        reached = [request for request in requests if wanted == ENUMERATE or not request.in_model]
        matched = [request for request in reached if fnmatchcase(request.name, pattern)]
        if pattern != "*" and pattern not in names and matched and wanted in BASELINES:
            _check_scored(pattern, wanted, matched)
        if pattern == "*" or pattern in names or matched:
            continue
        no_site = "matches no latent site" if any(sign in pattern for sign in "*?[") else "is no latent site"
        raise EstimatorError(
            f"the option estimators has {pattern!r}, which {no_site} of the guide",
            remedy=f"its latent sites are {', '.join(repr(r.name) for r in requests if not r.in_model) or 'none'}",
        )


def _differs_by_run(request: SiteRequest) -> EstimatorError:
    return EstimatorError(
        f"the option estimators has its name, and the sequential plate '{request.in_random_loop}' around it draws "
        "which of its data it runs for, so that another site may have it at each call",
        site=request.name,
        source=request.source,
        remedy=f'ask by a pattern that matches the sites of all data, or write `with pyro.plate("'
        f'{request.in_random_loop}", ...)` in the place of the loop',
    )


def _check_scored(pattern: str, baseline: str, matched: list[SiteRequest]) -> None:
    if all(request.sampler.is_pathwise for request in matched):
        names = ", ".join(repr(request.name) for request in matched)
        raise EstimatorError(
            f"the option estimators has {baseline!r} for {pattern!r}, which matches no site with a score function",
            remedy=f"{names} are pathwise and need no baseline; a site that is to have a score function all the same "
            "takes it by its own name",
        )


def _check_auto(request: SiteRequest, options: Options) -> None:
    if options.objective not in WITH_BASELINES:
        raise EstimatorError(
            f"the estimator 'auto' cannot be had with the objective {options.objective}, which subtracts no baselines",
            site=request.name,
            source=request.source,
            remedy='take objective="elbo", that of TraceGraph_ELBO',
        )
    learned = [name for name in ("nn_baseline", "baseline_value") if name in request.baseline]
    if learned:
        raise BaselineError(
            f"the estimator 'auto' cannot judge the site's {learned[0]}, which is not trained yet",
            site=request.name,
            source=request.source,
            remedy="leave the baseline out, or ask for no estimator by the site's name",
        )


def _not_by_the_estimator(request: SiteRequest, options: Options) -> EstimatorError:
    if options.objective in ENUMERATING:
        remedy = 'write infer={"enumerate": "parallel"} at the site, as for Pyro\'s class'
    else:
        remedy = 'take objective="elbo", that of TraceGraph_ELBO'
    return EstimatorError(
        f"the estimator '{ENUMERATE}' cannot be had with the objective {options.objective}",
        site=request.name,
        source=request.source,
        remedy=remedy,
    )


def _site_plan(request: SiteRequest, rules: dict[str, EstimatorRule], measured: bool) -> SitePlan:
    if request.estimator == AUTO:
        return SitePlan()
    rule = rules.get(request.estimator) if isinstance(request.estimator, str) else None
    names = ", ".join(map(repr, rules))
    if rule is None:
        raise EstimatorError(
            f"the estimator {request.estimator!r} is unknown",
            site=request.name,
            source=request.source,
            remedy=f"the estimators are {names}; without one the site has that of its distribution",
        )
    reason = rule.refuses_request(request.sampler)
    if reason is not None:
        others = [name for name, other in rules.items() if other.refuses_request(request.sampler) is None]
        raise EstimatorError(
            f"the estimator '{request.estimator}' cannot be had here: {reason}",
            site=request.name,
            source=request.source,
            remedy=f"what can be had here is {' or '.join(map(repr, others))}",
        )
    return SitePlan(rule.estimator, rule.needs, measured)


def _check_leave_one_out(request: SiteRequest, options: Options) -> None:
    def error(problem: str, remedy: str) -> BaselineError:
        return BaselineError(problem, site=request.name, source=request.source, remedy=remedy)

    others = [name for name in _OTHER_BASELINES if name in request.baseline]
    if others:
        raise error(
            f"{_LEAVE_ONE_OUT} cannot be combined with {', '.join(others)}",
            "give one of them: the other particles' costs are a baseline already",
        )
    if request.samples:
        return
    if options.num_particles < 2:
        raise error(
            f"{_LEAVE_ONE_OUT} takes the costs of the other particles, and there is only one particle",
            "pass num_particles=2 or more, or give the site infer={'num_samples': 2} or more, or leave the option out",
        )
    if options.num_particles > _UNROLLED_AT_MOST and not options.vectorize_particles:
        raise error(
            f"{_LEAVE_ONE_OUT} needs all {options.num_particles} particles in one program, and more than "
            f"{_UNROLLED_AT_MOST} are not unrolled",
            f"pass vectorize_particles=True, or at most {_UNROLLED_AT_MOST} particles",
        )


def _check_bound(options: Options) -> None:
    if options.num_particles > _UNROLLED_FOR_A_BOUND and not options.vectorize_particles:
        raise ArgumentError(
            f"a bound of all particles needs all {options.num_particles} in one program, and more than "
            f"{_UNROLLED_FOR_A_BOUND} are not unrolled",
            remedy=f"pass vectorize_particles=True, or at most {_UNROLLED_FOR_A_BOUND} particles",
        )


def _particles(options: Options, *, together: bool) -> Particles:
    """How the particles are run: in one vectorised run, or one after another, unrolled if they are few.

    :param together: whether a site needs all of them in one call of the emitted module.
    """
    count = options.num_particles
    if options.vectorize_particles:
        return Particles(plate=PARTICLE_PLATE if count > 1 else None, in_plate=count)
    return Particles(runs=count) if together or count <= _UNROLLED else Particles(calls=count)
