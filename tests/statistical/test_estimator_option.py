"""What the option ``estimators`` asks for is exact in expectation, and ``"auto"`` takes what enumeration finds best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.runtime.variance.estimator_choice import chosen, covariances_of, terms_of
from sgc.runtime.variance.other_baselines import LEAVE_ONE_OUT, OtherBaselines, settling_draws
from sgc.runtime.variance.sampling import drawn
from sgc.runtime.variance.terms import AS_IT_IS
from tests.runtime.sites_that_ask import UnlistedBernoulli
from tests.statistical.enumerate import binary, estimates_of_particles, exact_gradient, expected_estimate
from tests.statistical.test_exact import Infer, Program, chain, masked_and_scaled, mixed, none, plates


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


@pytest.mark.parametrize("program", [chain, plates, masked_and_scaled, mixed])
@pytest.mark.parametrize("name", ["score function", "decaying average"])
def test_expected_gradient_is_exact(program: Callable[[Infer], Program], name: Any) -> None:
    model, guide, args, supports = program(none)
    module = sgc.compile(model, guide, backend="eager", estimators={"*": name})
    leaves = list(module.initialize(*args).param_store.parameters())
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves)
    loss, gradients = expected_estimate(module, guide, args, supports, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("program", "count", "vectorised"), [(plates, 2, True), (mixed, 3, False), (chain, 2, False)])
def test_expected_gradient_of_particles_is_exact(
    program: Callable[[Infer], Program], count: int, vectorised: bool
) -> None:
    model, guide, args, supports = program(none)

    def far(*args: Any) -> None:
        model(*args)
        pyro.factor("far", torch.tensor(30.0))

    module = sgc.compile(
        far,
        guide,
        backend="eager",
        num_particles=count,
        vectorize_particles=vectorised,
        estimators={"*": "leave-one-out"},
    )
    leaves = list(module.initialize(*args).param_store.parameters())
    _, exact = exact_gradient(far, guide, args, supports, leaves)
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    for probability, _, gradients in estimates_of_particles(module, guide, args, supports, leaves):
        sums = [total + probability * gradient for total, gradient in zip(sums, gradients, strict=True)]
    for ours, theirs in zip(sums, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def switch(costs: Sequence[float]) -> tuple[Callable[[], None], Callable[[], None]]:
    """A fair switch, and what each of its values costs beside its density in the guide, which is known.

    That its values could be listed is not known, so that there are baselines alone to choose from.
    """

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("cost", torch.tensor(costs)[z.long()])

    def guide() -> None:
        pyro.sample("z", UnlistedBernoulli(logits=pyro.param("q", torch.tensor(0.0))))

    return model, guide


def moments_of_switch(costs: Sequence[float], count: int) -> dict[str, float]:
    """The exact variance of the gradient for each choice; the prior and the guide cancel out in each cost."""
    scores = torch.tensor([-0.5, 0.5])
    cost = torch.tensor(costs)
    mean, spread = cost.mean(), cost.var(correction=0) / settling_draws()
    signal = (scores * cost).mean()
    variances = {
        "score function": (scores**2 * cost**2).mean() - signal**2,
        "decaying average": (scores**2 * ((cost - mean) ** 2 + spread)).mean() - signal**2,
    }
    variances = {name: variance / count for name, variance in variances.items()}
    if count > 1:
        outcomes = []
        for drawn_values in itertools.product((0, 1), repeat=count):
            own = cost[list(drawn_values)]
            others = (own.sum() - own) / (count - 1)
            outcomes.append((scores[list(drawn_values)] * (own - others)).mean())
        variances["leave-one-out"] = torch.stack(outcomes).var(correction=0)
    return {name: float(variance) for name, variance in variances.items()}


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    "costs", [(40.0, 41.0), (-100.0, -90.0), (-3.0, 3.0), (1.0, -1.0), (7.0, 7.5), (0.0, 0.4)], ids=str
)
def test_auto_takes_what_is_best_by_enumeration(costs: tuple[float, float], count: int) -> None:
    """A cost far from zero wants a baseline; one whose mean is zero wants none, as the score alone has the variance."""
    exact = moments_of_switch(costs, count)
    module = sgc.compile(*switch(costs), backend="eager", num_particles=count, estimators={"z": "auto"}).initialize()
    row = module.choice().site("z")
    assert {candidate.name for candidate in row.candidates} == exact.keys()
    for candidate in row.candidates:
        assert candidate.variance == pytest.approx(exact[candidate.name], rel=0.5, abs=1e-9), candidate.name
    assert exact[row.chosen] <= 1.4 * min(exact.values())
    baseline = module.graph.baseline("z")
    assert (baseline is None) == (row.chosen == "score function")
    if costs in ((-3.0, 3.0), (1.0, -1.0)):
        assert row.chosen == "score function"
    if costs[0] in (40.0, -100.0):
        assert row.chosen != "score function"


def dice(spread: float, loud: float) -> tuple[Callable[[], None], Callable[[], None]]:
    """Twelve dice far from zero cost, beside a pathwise site whose parameter has a gradient of ``loud`` times noise."""

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("noise", loud * w.square())
        with pyro.plate("dice", 12):
            z = pyro.sample("z", dist.Categorical(torch.ones(6)))
            pyro.factor("cost", 9.0 + spread * torch.tensor([0.0, 1.0, 5.0, 2.0, 4.0, 3.0])[z])

    def guide() -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        with pyro.plate("dice", 12):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(12, 6))))

    return model, guide


@pytest.mark.parametrize("count", [1, 4])
def test_what_no_choice_changes_does_not_count(count: int) -> None:
    """A parameter with a million times the variance, which no score function reaches."""
    rows = []
    for loud in (0.0, 1000.0):
        pyro.clear_param_store()
        module = sgc.compile(*dice(1.0, loud), num_particles=count, backend="eager", estimators={"*": "auto"})
        rows.append(module.initialize().choice().site("z"))
    assert rows[0].chosen == rows[1].chosen != "score function"
    for one, other in zip(*(row.candidates for row in rows), strict=True):
        assert one.variance == pytest.approx(other.variance, rel=1e-9)
    assert rows[1].candidate("score function").variance > 2 * rows[1].candidate(rows[1].chosen).variance


@pytest.mark.parametrize("count", [2, 3, 8])
def test_leave_one_out_is_as_good_as_a_settled_average_up_to_what_few_others_cost(count: int) -> None:
    """Of many switches at once, whose cost hardly depends on each one's score."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(60)).to_event(1))
        pyro.factor("cost", 50.0 + (torch.linspace(0.5, 1.0, 60) * z).sum(-1))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.zeros(60))).to_event(1))

    module = sgc.compile(model, guide, num_particles=count, backend="eager", estimators={"*": "auto"})
    row = module.initialize().choice().site("z")
    ratio = row.candidate("leave-one-out").variance / row.candidate("decaying average").variance
    assert 1 < ratio < 1.05 * count / (count - 1)
    assert row.chosen == "leave-one-out"


def test_an_average_that_is_better_than_that_is_taken() -> None:
    """Of a fair switch a constant takes away all of the variance, and the other particles' mean does not."""
    module = sgc.compile(*switch((40.0, 41.0)), backend="eager", num_particles=4, estimators={"z": "auto"}).initialize()
    row = module.choice().site("z")
    assert row.candidate("leave-one-out").variance > 2 * row.candidate("decaying average").variance
    assert row.chosen == "decaying average"


def two_switches() -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        pyro.sample("x", dist.Normal(4.0 * a - b, 0.6), obs=torch.tensor(0.9))

    def guide() -> None:
        q = pyro.param("q", torch.tensor([0.3, -0.4]))
        a = pyro.sample("a", dist.Bernoulli(logits=q[0]))
        pyro.sample("b", dist.Bernoulli(logits=q[1] + a))

    return model, guide


@pytest.mark.parametrize("vectorised", [False, True])
def test_the_variance_of_each_combination_is_that_of_the_program_that_has_it(vectorised: bool) -> None:
    """Measured in one program from the covariances of terms, and by enumeration of one program for each."""
    model, guide = two_switches()
    options: dict[str, Any] = {"backend": "eager", "num_particles": 2, "vectorize_particles": vectorised}
    supports = {"a": binary(), "b": binary()}
    exact = {}
    for names in itertools.product(("score function", "leave-one-out"), repeat=2):
        asked: Any = dict(zip("ab", names, strict=True))
        module = sgc.compile(model, guide, estimators=asked, **options).initialize()
        first = second = torch.zeros(2)
        for probability, _, (gradient,) in estimates_of_particles(
            module, guide, (), supports, [pyro.param("q").unconstrained()]
        ):
            first, second = first + probability * gradient, second + probability * gradient**2
        exact[names] = float((second - first**2).sum())

    module = sgc.compile(model, guide, **options)
    specialization, tensors = module.specialization_for()
    candidates = dict.fromkeys("ab", (AS_IT_IS, LEAVE_ONE_OUT))
    terms = terms_of(specialization.graph, candidates, ("a", "b"))
    others = OtherBaselines(specialization.graph)

    def outcomes() -> Iterator[tuple[float, Any]]:
        def density(a: float, b: float) -> float:
            own = pyro.poutine.trace(pyro.condition(guide, {"a": torch.tensor(a), "b": torch.tensor(b)})).get_trace()
            return float(own.log_prob_sum().detach().exp())

        single = list(itertools.product((0.0, 1.0), repeat=2))
        for together in itertools.product(single, repeat=2):
            if vectorised:
                shape = specialization.graph.payload("a").shape
                forced = [torch.tensor(values).reshape(shape) for values in zip(*together, strict=True)]
            else:
                forced = [torch.tensor(value) for values in together for value in values]
            weight = density(*together[0]) * density(*together[1])
            yield weight, drawn(specialization, terms, tensors, forced, others)

    covariances = covariances_of(specialization, tensors, candidates, outcomes())
    times = {AS_IT_IS: 1.0, LEAVE_ONE_OUT: 1.1}
    report = chosen(specialization.graph, candidates, covariances, times, None)
    taken = tuple(report.estimators.values())
    assert exact[taken] <= 1.05 * min(exact.values()) < 1.05 * exact["score function", "score function"]
    for row, place in zip(report.sites, (0, 1), strict=True):
        for candidate in row.candidates:
            names = tuple(candidate.name if place == i else name for i, name in enumerate(taken))
            assert candidate.variance == pytest.approx(exact[names], rel=1e-9)
            assert candidate.time == 1.0  # a tenth is nothing
    slow = chosen(specialization.graph, candidates, covariances, {AS_IT_IS: 1.0, LEAVE_ONE_OUT: 1e6}, None)
    assert set(slow.estimators.values()) == {"score function"}


def test_what_is_measured_is_of_this_call() -> None:
    """Of data at which the costs are far from zero, and of data at which their mean is."""

    def model(cost: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("cost", cost[z.long()])

    def guide(cost: Tensor) -> None:
        switch((0.0, 0.0))[1]()

    names = []
    for costs in ([50.0, 52.0], [-2.0, 2.0]):
        pyro.clear_param_store()
        module = sgc.compile(model, guide, backend="eager", estimators={"z": "auto"})
        module(torch.tensor(costs)).backward()
        names.append(module.choice().estimators["z"])
    assert names == ["decaying average", "score function"]
