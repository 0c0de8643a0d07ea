"""Draws gradients of a specialization's terms, and measures how they vary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sgc.errors import ArgumentError
from sgc.graph.plan import OF_ALL_PARTICLES, WITH_BASELINES
from sgc.runtime.inspection.drawn_gradient import InvalidDrawError, parameter_leaves, valid_results
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.variance.moments import Moments, Vector
from sgc.runtime.variance.other_baselines import DECAYING_AVERAGE, LEAVE_ONE_OUT, OtherBaselines, settling_draws
from sgc.runtime.variance.remedies import SiteVariance
from sgc.runtime.variance.terms import ALL_COSTS, AS_IT_IS, NO_BASELINE, OTHER_TERMS, Terms, emit_terms, gradient
from sgc.runtime.variance.variance_report import GradientVariance, ParameterVariance
from sgc.tracing.leaves.opaque_calls import retained
from sgc.tracing.state.random_state import random_state, restore_random_state

_TOTAL = "total"


def measure(
    specialization: Specialization, tensors: list[Tensor], samples: int, *, alternatives: bool = True
) -> GradientVariance:
    """The variance of the gradient at the present parameters, averages and data, from so many draws of it.

    Nothing changes: not the parameters, their gradients, the averages, the buffers, or the random state.

    :param tensors: the program's inputs.
    :param alternatives: also measure what the variance would be under other choices, which takes longer.
    """
    if samples < 2:
        raise ArgumentError(f"a variance needs at least 2 samples, not {samples}")
    has_choices = specialization.options.objective in WITH_BASELINES | OF_ALL_PARTICLES  # others subtract nothing
    terms = emit_terms(specialization.graph, alternatives=alternatives and has_choices)
    state = random_state()
    try:
        others = settled_baselines(specialization, terms, tensors)
        draws = ((1.0, drawn(specialization, terms, tensors, (), others)) for _ in range(samples))
        return summary(specialization, terms, draws, exact=False)
    finally:
        restore_random_state(state)


def settled_baselines(
    specialization: Specialization, terms: Terms, tensors: list[Tensor], *, tries: int = 0
) -> OtherBaselines:
    """The baselines that sites could have, their decaying averages as they are once they have settled.

    :param tries: how many draws that fail are made anew.
    :raises InvalidDrawError: if more do.
    """
    costs: dict[str, list[Tensor]] = {}
    if any(DECAYING_AVERAGE in choices for choices in terms.other_baselines.values()):
        left = settling_draws()
        while left:
            with torch.no_grad():
                everything, _ = parameter_leaves(specialization, tensors)
                try:
                    results = _results(specialization, terms, everything)
                except InvalidDrawError:
                    tries -= 1
                    if tries < 0:
                        raise
                    continue
            left -= 1
            for site, cost in terms.downstream_costs(results).items():
                costs.setdefault(site, []).append(cost)
    return OtherBaselines.settled(specialization.graph, costs)


def drawn(
    specialization: Specialization,
    terms: Terms,
    tensors: list[Tensor],
    forced: Sequence[Tensor],
    others: OtherBaselines,
) -> Iterator[tuple[str, str, Vector]]:
    """One draw: the gradient of each site's term, under each choice of its cost."""
    everything, leaves = parameter_leaves(specialization, tensors)
    with torch.enable_grad(), retained():
        results = _results(specialization, terms, [*everything, *forced])
        for site, choice, surrogate in terms.surrogates(results, others):
            yield site, choice, gradient(surrogate, leaves)


def _results(specialization: Specialization, terms: Terms, tensors: list[Tensor]) -> list[Tensor]:
    assert terms.emitted.averages == specialization.emitted.averages
    return valid_results(specialization, terms.emitted.module(*tensors))


def summary(
    specialization: Specialization,
    terms: Terms,
    draws: Iterable[tuple[float, Iterable[tuple[str, str, Vector]]]],
    *,
    exact: bool,
) -> GradientVariance:
    """What weighted draws of the terms' gradients say.

    :param draws: weights and draws.
    :param exact: whether these are all outcomes, with their probabilities.
    """
    sites = list(terms.choices)
    own = [OTHER_TERMS, *sites]
    instead = [(site, choice) for site, choices in terms.choices.items() for choice in choices[1:]]
    everywhere = [choice for choice in (NO_BASELINE, ALL_COSTS) if any(choice == other for _, other in instead)]
    names = [_TOTAL, *(f"{choice} {site}" for site, choice in instead), *everywhere]
    moments = Moments([*((name, name) for name in names), *((site, _TOTAL) for site in own)])
    for weight, draw in draws:
        by_choice: dict[tuple[str, str], dict[str, Tensor]] = {}
        for site, choice, vector in draw:
            _add(by_choice.setdefault((site, choice), {}), vector)
        chosen = {site: by_choice[site, AS_IT_IS] for site in own}
        total = _sum(chosen.values())
        vectors: dict[str, Vector] = {**chosen, _TOTAL: total}
        for site, choice in instead:
            vectors[f"{choice} {site}"] = _sum(
                [*(chosen[other] for other in own if other != site), by_choice[site, choice]]
            )
        for choice in everywhere:
            vectors[choice] = _sum(_with(by_choice, site, choice) for site in own)
        moments.add(vectors, weight)
    calls = specialization.graph.particles.calls

    def variances(one: str, other: str = "") -> dict[str, float]:
        return {part: v / calls for part, v in moments.covariance(one, other or one, exact=exact).items()}

    def variance(name: str) -> float:
        return sum(variances(name).values())

    def instead_of(site: str, choice: str) -> float | None:
        return variance(f"{choice} {site}") if choice in terms.choices.get(site, ()) else None

    total_of = variances(_TOTAL)
    rows = [
        SiteVariance(
            site,
            sum(variances(site, _TOTAL).values()),
            *(instead_of(site, choice) for choice in (NO_BASELINE, ALL_COSTS, DECAYING_AVERAGE, LEAVE_ONE_OUT)),
        )
        for site in own
    ]
    mean = moments.mean(_TOTAL)
    return GradientVariance(
        samples=None if exact else moments.count,
        total=sum(total_of.values()),
        without_baselines=variance(NO_BASELINE) if NO_BASELINE in everywhere else None,
        without_rao_blackwellisation=variance(ALL_COSTS) if ALL_COSTS in everywhere else None,
        sites=tuple(rows),
        parameters=tuple(
            ParameterVariance(name, value, float(mean[name].norm()), mean[name].numel())
            for name, value in total_of.items()
        ),
        graph=specialization.graph,
    )


def _with(by_choice: dict[tuple[str, str], dict[str, Tensor]], site: str, choice: str) -> Vector:
    """A site's term under this choice; without Rao-Blackwellisation there is no baseline either."""
    for wanted in (choice, NO_BASELINE, AS_IT_IS):
        if (site, wanted) in by_choice:
            return by_choice[site, wanted]
    raise KeyError(site)


def _sum(vectors: Iterable[Vector]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for vector in vectors:
        _add(total, vector)
    return total


def _add(total: dict[str, Tensor], vector: Vector) -> None:
    for name, value in vector.items():
        total[name] = total[name] + value if name in total else value
