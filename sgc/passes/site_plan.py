"""Decides, before the program is captured, what was asked of each site and how the particles are run."""

from __future__ import annotations

from collections.abc import Iterable

from sgc.config import Options
from sgc.errors import ArgumentError, BaselineError, EstimatorError
from sgc.graph.estimator_rules import EstimatorRule
from sgc.graph.plan import OF_ALL_PARTICLES, WITH_BASELINES, Plan, SitePlan, SiteRequest
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


def make_plan(requests: Iterable[SiteRequest], options: Options) -> Plan:
    """The plan of a program whose guide's sites ask for this.

    :raises EstimatorError: if an estimator is unknown, or cannot be had at its site.
    :raises BaselineError: if a leave-one-out baseline has no other particles, too many, or another baseline beside it.
    :raises ArgumentError: if the objective needs more particles in one program than are unrolled.
    """
    requests = list(requests)
    left_out = [request for request in requests if _LEAVE_ONE_OUT in request.baseline]
    if options.objective not in WITH_BASELINES:
        left_out = []
    for request in left_out:
        _check_leave_one_out(request, options)
    together = bool(left_out)
    if options.objective in OF_ALL_PARTICLES:
        _check_bound(options)
        together = True
    rules = {rule.asked_as: rule for rule in estimators_of(options.objective) if rule.asked_as is not None}
    sites = {request.name: _site_plan(request, rules) for request in requests if request.estimator is not None}
    particles = _particles(options, together=together)
    return Plan(sites, particles, options.objective, options.alpha, options.analytic_kl)


def _site_plan(request: SiteRequest, rules: dict[str, EstimatorRule]) -> SitePlan:
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
    return SitePlan(rule.estimator, rule.needs)


def _check_leave_one_out(request: SiteRequest, options: Options) -> None:
    def error(problem: str, remedy: str) -> BaselineError:
        return BaselineError(problem, site=request.name, source=request.source, remedy=remedy)

    others = [name for name in _OTHER_BASELINES if name in request.baseline]
    if others:
        raise error(
            f"{_LEAVE_ONE_OUT} cannot be combined with {', '.join(others)}",
            "give one of them: the other particles' costs are a baseline already",
        )
    if options.num_particles < 2:
        raise error(
            f"{_LEAVE_ONE_OUT} takes the costs of the other particles, and there is only one particle",
            "pass num_particles=2 or more, or leave the option out",
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
