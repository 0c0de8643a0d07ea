"""Chooses the baselines of sites that ask for ``"auto"``: those with the least variance of the gradient times time.

Each of them leaves the expectation of the gradient as it is; which of them a site can have is what
:func:`sgc.runtime.variance.other_baselines.admissible` says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import pyro
from torch import Tensor

from sgc.config import EstimatorName
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator
from sgc.graph.plan import Plan
from sgc.graph.sizes import shape_of
from sgc.passes.choose_estimators import scored_sites
from sgc.runtime.inspection.drawn_gradient import InvalidDrawError, parameter_leaves
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.variance.choice_report import Candidate, EstimatorChoice, SiteChoice
from sgc.runtime.variance.covariances import Covariances
from sgc.runtime.variance.moments import Vector
from sgc.runtime.variance.other_baselines import DECAYING_AVERAGE, LEAVE_ONE_OUT, OtherBaselines, admissible
from sgc.runtime.variance.sampling import drawn, settled_baselines
from sgc.runtime.variance.step_times import step_times
from sgc.runtime.variance.terms import AS_IT_IS, Terms, emit_terms
from sgc.tracing.state.random_state import random_state, restore_random_state

_SEED = 20141128
_DRAWS, _FEWEST_DRAWS = 200, 40
_GRADIENTS = 8000
"""Of sites with many candidates fewer draws are made, so that no more gradients of terms are taken than these."""

_ELEMENTS = 3 * 10**9
"""Of large programs, too, so that no more elements of their tensors are computed than these: some ten seconds."""

AS_FAST = 2.0
"""A step that takes less than this times the shortest counts as equally fast: a machine's load is not to choose, and
small operators cost more in an eager module than in a compiled one.
"""

AS_GOOD = 1.05
"""Of choices within this factor of the best one the simplest is taken, in the order of :data:`CANDIDATES`."""

_JOINTLY = 2048
"""Up to how many combinations of choices are compared; of more, one site's choice after another is improved."""

_SWEEPS = 20

CANDIDATES: dict[str, EstimatorName] = {
    AS_IT_IS: "score function",
    LEAVE_ONE_OUT: "leave-one-out",
    DECAYING_AVERAGE: "decaying average",
}
"""The choices of a cost that a score function can be multiplied by, and what the option ``estimators`` calls them."""

Combination = tuple[str, ...]


def choose(
    specialization: Specialization,
    tensors: list[Tensor],
    plan: Plan,
    asking: Iterable[str],
    parameters: tuple[str, ...] | None = None,
) -> EstimatorChoice:
    """Measure what these sites could have, at the present parameters and data, and choose.

    Nothing changes: not the parameters, their gradients, the averages, the buffers, or the random state. The draws are
    from a seed of their own, the same in each call.

    :param specialization: one in which these sites have no baseline.
    :param tensors: the program's inputs.
    :param plan: of the specialization.
    :param parameters: those whose gradient's variance counts; None: those that a score function of these sites reaches.
    """
    asking = tuple(asking)
    graph = specialization.graph
    candidates = {
        site: (AS_IT_IS, *_in_order(admissible(graph, site))) for site in scored_sites(graph) if site in asking
    }
    others = tuple(site for site in asking if site not in candidates)
    if not candidates and not plan.enumerates:
        return EstimatorChoice((), others, 0)
    state = random_state()
    try:
        pyro.set_rng_seed(_SEED)
        terms = max(1, sum(map(len, candidates.values())))
        draws = min(_DRAWS, _GRADIENTS // terms, _ELEMENTS // _elements(specialization))
        draws = max(_FEWEST_DRAWS, draws)
        covariances = _covariances(specialization, tensors, candidates, draws, parameters)
        every = _in_order({choice for choices in candidates.values() for choice in choices} or {AS_IT_IS})
        times = step_times(specialization, tensors, plan, candidates, every)
    finally:
        restore_random_state(state)
    return chosen(graph, candidates, covariances, times, draws, others)


def _in_order(choices: Iterable[str]) -> list[str]:
    return sorted(choices, key=[*CANDIDATES].index)


# -- what is measured


def _elements(specialization: Specialization) -> int:
    """How many elements the tensors have that the program computes for one draw of the gradient."""
    program, particles = specialization.capture.program, specialization.graph.particles
    values = [node.meta.get("val") for node in program.module.graph.nodes if node.op == "call_function"]
    shapes = [shape_of(value.shape) for value in values if isinstance(value, Tensor)]
    return 1 + particles.runs * sum(math.prod(size for size in shape if isinstance(size, int)) for shape in shapes)


def terms_of(graph: StochasticGraph, candidates: Mapping[str, tuple[str, ...]], forced: tuple[str, ...] = ()) -> Terms:
    """The terms of the surrogate, with the candidates as choices of the sites' costs."""
    terms = emit_terms(graph, forced, alternatives=False)
    return replace(terms, other_baselines={site: choices[1:] for site, choices in candidates.items()})


def _covariances(
    specialization: Specialization,
    tensors: list[Tensor],
    candidates: Mapping[str, tuple[str, ...]],
    draws: int,
    parameters: tuple[str, ...] | None,
) -> Covariances:
    terms = terms_of(specialization.graph, candidates)
    others = settled_baselines(specialization, terms, tensors, tries=draws)
    valid = _valid_draws(specialization, terms, tensors, others, draws)
    return covariances_of(specialization, tensors, candidates, valid, parameters)


def _valid_draws(
    specialization: Specialization, terms: Terms, tensors: list[Tensor], others: OtherBaselines, draws: int
) -> Iterator[tuple[float, list[tuple[str, str, Vector]]]]:
    """So many draws; where some fail, twice as many are tried.

    :raises InvalidDrawError: if most fail.
    """
    tried = 0
    while draws:
        tried += 1
        try:
            draw = list(drawn(specialization, terms, tensors, (), others))
        except InvalidDrawError:
            if tried > 2 * _DRAWS:
                raise
            continue
        draws -= 1
        yield 1.0, draw


def covariances_of(
    specialization: Specialization,
    tensors: list[Tensor],
    candidates: Mapping[str, tuple[str, ...]],
    draws: Iterable[tuple[float, Iterable[tuple[str, str, Vector]]]],
    parameters: tuple[str, ...] | None = None,
) -> Covariances:
    """Of the candidates' terms, and of the sum of all other terms, which is the first.

    Of the parameters that the candidates' terms reach: the others vary alike under each choice, and where they vary
    much, a difference of ten times in those would be lost in the whole.

    :param draws: weights, and draws as :func:`sgc.runtime.variance.sampling.drawn` gives them.
    """
    _, leaves = parameter_leaves(specialization, tensors)
    names = [(site, choice) for site, choices in candidates.items() for choice in choices]
    measured: Covariances | None = None
    for weight, draw in draws:
        vectors: dict[tuple[str, str], dict[str, Tensor]] = {}
        for site, choice, vector in draw:
            into = vectors.setdefault((site, choice) if site in candidates else _OTHERS, {})
            for part, value in vector.items():
                into[part] = into[part] + value if part in into else value
        if measured is None:
            reached = {part for name, vector in vectors.items() if name != _OTHERS for part in vector}
            reached = reached if parameters is None else {*parameters}
            elements = {part: leaf.numel() for part, leaf in leaves.items() if part in reached}
            measured = Covariances((_OTHERS, *names), elements)
        measured.add(dict(vectors), weight)
    assert measured is not None, "there are draws"
    return measured


_OTHERS = ("", "all other terms")


# -- what is chosen of it


def chosen(
    graph: StochasticGraph,
    candidates: Mapping[str, tuple[str, ...]],
    covariances: Covariances,
    times: Mapping[str, float],
    draws: int | None,
    others: tuple[str, ...] = (),
) -> EstimatorChoice:
    """The combination with the least variance times time; of those that are as good, one that is simple.

    :param times: of a step, in seconds, by candidate.
    :param draws: how many; None if the covariances are of all outcomes.
    :param others: sites where nothing is to be chosen.
    """
    fastest = min(times.values())
    relative = {choice: value / fastest if value >= AS_FAST * fastest else 1.0 for choice, value in times.items()}
    sites = [*candidates]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 1.0

    def variance(combination: Combination) -> float:
        own = covariances.of_sum([_OTHERS, *zip(sites, combination, strict=True)], exact=draws is None)
        return max(own, 0.0) if math.isfinite(own) else math.inf

    def product(combination: Combination) -> float:
        return variance(combination) * mean([relative[choice] for choice in combination])

    best = _simplified(candidates, product, _best(candidates, product), graph.particles.in_a_call)
    rows = []
    for place, (site, choices) in enumerate(candidates.items()):
        own = [_with(best, place, choice) for choice in choices]
        measured = [
            Candidate(_name(graph, site, choice), variance(c), relative[choice])
            for choice, c in zip(choices, own, strict=True)
        ]
        rows.append(SiteChoice(site, _name(graph, site, best[place]), tuple(measured)))
    seconds = mean([times[choice] for choice in best] or [fastest])
    return EstimatorChoice(tuple(rows), others, draws, variance(best), seconds, (), covariances.parameters)


def _best(candidates: Mapping[str, tuple[str, ...]], product: Callable[[Combination], float]) -> Combination:
    if math.prod(map(len, candidates.values())) <= _JOINTLY:
        return min(itertools.product(*candidates.values()), key=product)
    best = tuple(choices[0] for choices in candidates.values())
    for _ in range(_SWEEPS):
        before = best
        for place, choices in enumerate(candidates.values()):
            best = min((_with(best, place, choice) for choice in choices), key=product)
        if best == before:
            break
    return best


def _simplified(
    candidates: Mapping[str, tuple[str, ...]],
    product: Callable[[Combination], float],
    best: Combination,
    particles: int,
) -> Combination:
    """As good a combination: one choice for all sites if it can be, else simpler ones where they can be.

    An average is measured once it has settled, at parameters and data that stay; in a training they move, and it is
    behind. Leave-one-out never is, and the mean of so many others has little more variance than the best constant.
    So it is as good up to that.
    """
    bound = AS_GOOD * product(best)
    behind = particles / (particles - 1) if particles > 1 and DECAYING_AVERAGE in best else 1.0

    def as_good(combination: Combination, choice: str) -> bool:
        return product(combination) <= bound * (behind if choice == LEAVE_ONE_OUT else 1.0)

    for choice in CANDIDATES:
        alike = tuple(choice if choice in choices else choices[0] for choices in candidates.values())
        if as_good(alike, choice):
            return alike
    for place, choices in enumerate(candidates.values()):
        simpler = ((_with(best, place, choice), choice) for choice in choices[: choices.index(best[place])])
        best = next((combination for combination, choice in simpler if as_good(combination, choice)), best)
    return best


def _with(combination: Combination, place: int, choice: str) -> Combination:
    return (*combination[:place], choice, *combination[place + 1 :])


def _name(graph: StochasticGraph, site: str, choice: str) -> EstimatorName:
    """What the option ``estimators`` calls a choice; without a baseline it is the site's estimator."""
    if choice == AS_IT_IS and graph.estimator(site) is Estimator.PARTIAL:
        return "partially pathwise"
    return CANDIDATES[choice]
