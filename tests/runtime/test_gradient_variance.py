"""``gradient_variance``: exact where all outcomes are enumerated, and a sample's within stated bounds of that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.errors import ArgumentError, SgcError
from sgc.guards.base import Call
from sgc.runtime.variance.moments import Moments
from sgc.runtime.variance.other_baselines import (
    DECAYING_AVERAGE,
    LEAVE_ONE_OUT,
    OtherBaselines,
    admissible,
    settling_draws,
)
from sgc.runtime.variance.sampling import drawn, summary
from sgc.runtime.variance.terms import OTHER_TERMS, emit_terms
from sgc.runtime.variance.variance_report import GradientVariance

X, BASELINE = 0.7, -1.5


def model() -> None:
    top = pyro.sample("top", dist.Bernoulli(0.3))
    low = pyro.sample("low", dist.Bernoulli(0.2 + 0.5 * top))
    pyro.sample("x", dist.Normal(pyro.param("shift", torch.tensor(0.4)) * low, 1.0), obs=torch.tensor(X))


def guide(*shape: int) -> None:
    """A guide, and the shape of what its baseline is for."""
    a = pyro.param("a", torch.tensor(0.3))
    b = pyro.param("b", torch.tensor(-0.2))
    top = pyro.sample(
        "top", dist.Bernoulli(logits=a), infer={"baseline": {"baseline_value": torch.full(shape, BASELINE)}}
    )
    pyro.sample("low", dist.Bernoulli(logits=b + top))


def by_hand() -> dict[str, list[tuple[float, Tensor]]]:
    """For each choice the outcomes: a probability, and the gradient of the loss in (a, b, shift)."""
    outcomes: dict[str, list[tuple[float, Tensor]]] = {}
    for top, low in itertools.product((0.0, 1.0), repeat=2):
        a, b, shift = (torch.tensor(v, requires_grad=True) for v in (0.3, -0.2, 0.4))
        q_top, q_low = dist.Bernoulli(logits=a), dist.Bernoulli(logits=b + top)
        top_, low_ = torch.tensor(top), torch.tensor(low)
        log_q_top, log_q_low = q_top.log_prob(top_), q_low.log_prob(low_)
        log_p_top, log_p_low = (dist.Bernoulli(p).log_prob(v) for p, v in ((0.3, top_), (0.2 + 0.5 * top, low_)))
        log_p_x = dist.Normal(shift * low_, 1.0).log_prob(torch.tensor(X))
        whole = (log_p_top + log_p_low + log_p_x - log_q_top - log_q_low).detach()
        below = (log_p_low + log_p_x - log_q_low).detach()
        probability = math.exp(log_q_top.item() + log_q_low.item())
        choices = {
            "own": (whole - BASELINE, below),
            "without baseline top": (whole, below),
            "all costs top": (whole, below),
            "all costs low": (whole - BASELINE, whole),
            "no baselines": (whole, below),
            "no Rao-Blackwellisation": (whole, whole),
        }
        for name, (of_top, of_low) in choices.items():
            surrogate = log_p_x + log_q_top * of_top + log_q_low * of_low
            gradient = torch.autograd.grad(-surrogate, (a, b, shift), retain_graph=True)
            outcomes.setdefault(name, []).append((probability, torch.stack(gradient)))
    return outcomes


def variance(outcomes: list[tuple[float, Tensor]]) -> float:
    mean = sum(p * gradient for p, gradient in outcomes)
    return float(sum(p * (gradient - mean).square().sum() for p, gradient in outcomes))


def enumerated(
    loss_module: sgc.LossModule, sites: tuple[str, ...], *args: Any, averages: dict[str, float] | None = None
) -> GradientVariance:
    """The report of all outcomes of some Bernoulli sites, with decaying averages that stay at 0, or at these."""
    loss_module.initialize(*args)
    specialization, tensors = loss_module._choose(Call(args, {}))
    graph = specialization.graph
    terms = emit_terms(graph, sites)
    runs = graph.particles.runs
    shapes = [graph.payload(site).shape for site in sites] * runs
    sizes = [math.prod(shape) for shape in shapes]
    fixed = {site: torch.tensor((averages or {}).get(site, 0.0)) for site in sites}
    others = OtherBaselines(graph, fixed, beta=1.0)

    def outcomes() -> Iterator[tuple[float, Any]]:
        for values in itertools.product((0.0, 1.0), repeat=sum(sizes)):
            parts = torch.tensor(values).split(sizes)
            forced = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
            probability = 1.0
            for run in range(runs):
                own = forced[run * len(sites) : (run + 1) * len(sites)]
                probability *= _probability(guide, dict(zip(sites, own, strict=True)))
            yield probability, drawn(specialization, terms, tensors, forced, others)

    return summary(specialization, terms, outcomes(), exact=True)


def _probability(program: Callable[..., Any], values: dict[str, Tensor]) -> float:
    trace = pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace()
    return math.exp(trace.log_prob_sum().item())


def test_it_is_exact_over_all_outcomes() -> None:
    report = enumerated(sgc.compile(model, guide, backend="eager"), ("top", "low"))
    expected = {name: variance(outcomes) for name, outcomes in by_hand().items()}
    assert report.samples is None
    assert report.total == pytest.approx(expected["own"], rel=1e-5)
    assert report.without_baselines == pytest.approx(expected["no baselines"], rel=1e-5)
    assert report.without_rao_blackwellisation == pytest.approx(expected["no Rao-Blackwellisation"], rel=1e-5)
    top, low = report.site("top"), report.site("low")
    assert top.without_baseline == pytest.approx(expected["without baseline top"], rel=1e-5)
    assert low.without_baseline is None and top.without_rao_blackwellisation is None
    assert low.without_rao_blackwellisation == pytest.approx(expected["all costs low"], rel=1e-5)
    assert sum(row.variance for row in report.sites) == pytest.approx(report.total, rel=1e-6)
    assert sum(row.variance for row in report.parameters) == pytest.approx(report.total, rel=1e-6)
    mean = sum(p * gradient for p, gradient in by_hand()["own"])
    norms = {row.name: row.mean_norm for row in report.parameters}
    assert [norms[name] for name in ("a", "b", "shift")] == pytest.approx(mean.abs().tolist(), rel=1e-5)


# -- the baselines that sites could have


def of_particles(particles: int) -> list[tuple[float, dict[str, Tensor], dict[str, Tensor], Tensor]]:
    """The outcomes of independent particles, each with its probability, and of all particles: downstream costs by site
    of shape [K], gradients of the score functions in (a, b, shift) of shape [K, 3], and those of log p(x).
    """
    outcomes = []
    for values in itertools.product((0.0, 1.0), repeat=2 * particles):
        probability, costs, scores, others = 1.0, {"top": [], "low": []}, {"top": [], "low": []}, []  # type: ignore[var-annotated]
        for top, low in zip(values[::2], values[1::2], strict=True):
            leaves = a, b, shift = [torch.tensor(v, requires_grad=True) for v in (0.3, -0.2, 0.4)]
            top_, low_ = torch.tensor(top), torch.tensor(low)
            log_q = {
                "top": dist.Bernoulli(logits=a).log_prob(top_),
                "low": dist.Bernoulli(logits=b + top).log_prob(low_),
            }
            log_p_top, log_p_low = (dist.Bernoulli(p).log_prob(v) for p, v in ((0.3, top_), (0.2 + 0.5 * top, low_)))
            log_p_x = dist.Normal(shift * low_, 1.0).log_prob(torch.tensor(X))
            below = (log_p_low + log_p_x - log_q["low"]).detach()
            costs["low"].append(below)
            costs["top"].append(below + (log_p_top - log_q["top"]).detach())
            for site, density in log_q.items():
                parts = torch.autograd.grad(density, leaves, allow_unused=True, retain_graph=True)
                scores[site].append(torch.stack([torch.tensor(0.0) if part is None else part for part in parts]))
            parts = torch.autograd.grad(log_p_x, leaves, allow_unused=True)
            others.append(torch.stack([torch.tensor(0.0) if part is None else part for part in parts]))
            probability *= math.exp(sum(density.item() for density in log_q.values()))
        stacked = [{site: torch.stack(parts) for site, parts in each.items()} for each in (costs, scores)]
        outcomes.append((probability, *stacked, torch.stack(others)))
    return outcomes  # type: ignore[return-value]


def variance_with(particles: int, baselines: dict[str, Callable[[Tensor], Tensor | float]]) -> float:
    """The exact variance with these baselines, each a function of a site's downstream costs of shape [K]."""
    outcomes = []
    for probability, costs, scores, others in of_particles(particles):
        gradient = others.sum(0)
        for site, baseline in baselines.items():
            gradient = gradient + ((costs[site] - baseline(costs[site]))[:, None] * scores[site]).sum(0)
        outcomes.append((probability, -gradient / particles))
    return variance(outcomes)


def leave_one_out(costs: Tensor) -> Tensor:
    return (costs.sum() - costs) / (len(costs) - 1)


def own(_: Tensor) -> float:
    return BASELINE


def none(_: Tensor) -> float:
    return 0.0


@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize("vectorize", [False, True], ids=["runs", "a plate"])
def test_other_baselines_are_exact_over_all_outcomes(particles: int, vectorize: bool) -> None:
    """With averages that stand still at some value."""
    program = partial(guide, particles) if vectorize else guide
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorize, "max_plate_nesting": 0}
    loss_module = sgc.compile(model, program, backend="eager", **options)
    report = enumerated(loss_module, ("top", "low"), averages={"top": -2.0, "low": -0.7})
    assert report.total == pytest.approx(variance_with(particles, {"top": own, "low": none}), rel=1e-5)
    expected = {
        ("top", "average"): variance_with(particles, {"top": lambda _: -2.0, "low": none}),
        ("low", "average"): variance_with(particles, {"top": own, "low": lambda _: -0.7}),
        ("top", "others"): variance_with(particles, {"top": leave_one_out, "low": none}),
        ("low", "others"): variance_with(particles, {"top": own, "low": leave_one_out}),
    }
    for (site, kind), value in expected.items():
        row = report.site(site)
        measured = row.with_decaying_average if kind == "average" else row.with_leave_one_out
        assert measured == pytest.approx(value, rel=1e-5), (site, kind)


def test_leave_one_out_that_is_there_is_what_is_measured_for_others() -> None:
    """The same numbers by sgc's own node and beside it."""

    def asking() -> None:
        a, b = pyro.param("a", torch.tensor(0.3)), pyro.param("b", torch.tensor(-0.2))
        top = pyro.sample(
            "top", dist.Bernoulli(logits=a), infer={"baseline": {"baseline_value": torch.tensor(BASELINE)}}
        )
        pyro.sample("low", dist.Bernoulli(logits=b + top), infer={"baseline": {"use_leave_one_out": True}})

    plain = enumerated(sgc.compile(model, guide, backend="eager", num_particles=2), ("top", "low"))
    asked = enumerated(sgc.compile(model, asking, backend="eager", num_particles=2), ("top", "low"))
    assert asked.total == pytest.approx(plain.site("low").with_leave_one_out, rel=1e-5)
    assert asked.site("low").without_baseline == pytest.approx(plain.total, rel=1e-5)
    assert asked.site("low").with_leave_one_out is None


def test_a_settled_average_varies_as_it_does_in_training() -> None:
    """Its own variance, (1 - beta) / (1 + beta) of a cost's, is in what is measured."""
    pyro.set_rng_seed(2)
    samples = 600
    report = sgc.compile(model, guide, backend="eager").gradient_variance(samples=samples)
    outcomes = of_particles(1)
    mean = sum(p * costs["low"].item() for p, costs, _, _ in outcomes)
    of_average = sum(p * (costs["low"].item() - mean) ** 2 for p, costs, _, _ in outcomes) * 0.1 / 1.9
    of_score = sum(p * scores["low"].square().sum().item() for p, _, scores, _ in outcomes)
    still = variance_with(1, {"top": own, "low": lambda _: mean})
    expected = still + of_average * of_score
    assert report.site("low").with_decaying_average == pytest.approx(expected, rel=5 * math.sqrt(2 / samples))
    assert report.site("low").with_leave_one_out is None


def test_an_average_starts_settled_and_moves_with_each_run() -> None:
    assert settling_draws(0.9) == 19  # a mean of 19 varies by 1/19 of a cost's variance: 0.1 / 1.9
    graph = sgc.compile(model, guide, backend="eager", num_particles=2).initialize().graph
    others = OtherBaselines.settled(graph, {"low": [torch.tensor(1.0), torch.tensor(3.0)]})
    left = [*others.left("low", DECAYING_AVERAGE, [torch.tensor(12.0), torch.tensor(0.0)])]
    left += others.left("low", DECAYING_AVERAGE, [torch.tensor(2.7)])
    # The averages before each: 2, then 0.9 * 2 + 0.1 * 12 = 3, then 2.7.
    assert [value.item() for value in left] == pytest.approx([10.0, -3.0, 0.0], abs=1e-6)


def test_which_baselines_can_be_had() -> None:
    def asking(options: dict[str, Any]) -> Callable[[], None]:
        def program() -> None:
            top = pyro.sample("top", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
            pyro.sample("low", dist.Bernoulli(logits=top - 0.2), infer={"baseline": options})

        return program

    def had(options: dict[str, Any], **particles: Any) -> tuple[str, ...]:
        pyro.clear_param_store()
        return admissible(sgc.compile(model, asking(options), backend="eager", **particles).initialize().graph, "low")

    average = {"use_decaying_avg_baseline": True}
    assert had({}) == (DECAYING_AVERAGE,)
    assert had(average) == ()
    assert had({**average, "baseline_value": torch.tensor(1.0)}) == (DECAYING_AVERAGE,)
    assert had(average, num_particles=2) == (LEAVE_ONE_OUT,)
    assert had({"use_leave_one_out": True}, num_particles=2) == (DECAYING_AVERAGE,)
    assert had({}, num_particles=3, vectorize_particles=True, max_plate_nesting=0) == (DECAYING_AVERAGE, LEAVE_ONE_OUT)
    assert had({}, num_particles=6) == (DECAYING_AVERAGE,)  # six calls of one particle


def test_particles_that_hand_something_on_have_no_leave_one_out() -> None:
    memory = torch.zeros(())

    def writing() -> None:
        top = pyro.sample("top", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        memory.copy_(top)
        pyro.sample("low", dist.Bernoulli(logits=top - 0.2))

    graph = sgc.compile(model, writing, backend="eager", num_particles=2).initialize().graph
    assert admissible(graph, "top") == (DECAYING_AVERAGE,)
    assert admissible(graph, "low") == (DECAYING_AVERAGE, LEAVE_ONE_OUT)


@pytest.mark.parametrize(
    ("particles", "vectorize"), [(1, False), (3, False), (3, True), (6, False)], ids=["1", "3", "3 in a plate", "6"]
)
def test_a_sample_gives_the_same_within_five_standard_errors(particles: int, vectorize: bool) -> None:
    """And of several particles a variance divided by their number, however they are run."""
    pyro.set_rng_seed(1)
    samples = 400
    program = partial(guide, particles) if vectorize else guide
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorize, "max_plate_nesting": 0}
    loss_module = sgc.compile(model, program, backend="eager", **options)
    report = loss_module.gradient_variance(samples=samples)
    outcomes = by_hand()["own"]
    mean = sum(p * gradient for p, gradient in outcomes)
    squares = [(p, (gradient - mean).square().sum()) for p, gradient in outcomes]
    expected = sum(p * square for p, square in squares)
    error = math.sqrt(sum(p * (square - expected) ** 2 for p, square in squares) / samples)
    assert abs(report.total - expected / particles) < 5 * max(error, expected * math.sqrt(2 / samples)) / particles
    assert report.samples == samples


def test_nothing_changes() -> None:
    def averaged() -> None:
        a = pyro.param("a", torch.tensor(0.3))
        pyro.sample("top", dist.Bernoulli(logits=a), infer={"baseline": {"use_decaying_avg_baseline": True}})
        pyro.sample("low", dist.Bernoulli(0.5))

    loss_module = sgc.compile(model, averaged, backend="eager")
    loss_module().backward()
    state = {name: value.clone() for name, value in loss_module.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in loss_module.named_parameters() if p.grad is not None}
    before = torch.get_rng_state()
    one, two = (loss_module.gradient_variance(samples=20) for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in loss_module.state_dict().items())
    assert all(torch.equal(p.grad, gradients[name]) for name, p in loss_module.named_parameters() if name in gradients)


def test_a_pathwise_program_has_one_term() -> None:
    def normal_model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(X))

    def normal_guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        pyro.sample("z", dist.Normal(loc, 2.0))

    report = sgc.compile(normal_model, normal_guide, backend="eager").gradient_variance(samples=1000)
    assert [row.site for row in report.sites] == [OTHER_TERMS]
    # The gradient in loc is z + (z - x), and z has the standard deviation 2.
    assert report.total == pytest.approx(16.0, rel=5 * math.sqrt(2 / 1000))
    assert report.without_baselines is None and report.advice() == ()
    assert "without baselines" not in str(report)


def test_what_is_printed_and_advised() -> None:
    report = enumerated(sgc.compile(model, guide, backend="eager"), ("top", "low"))
    text = str(report)
    assert text.startswith("variance of the gradient, weighted over all outcomes: ")
    assert "without baselines and Rao-Blackwellisation: " in text
    assert all(name in text for name in ("top", "low", "shift", OTHER_TERMS))
    (advice,) = [line for line in report.advice() if line.startswith("low")]
    assert "test_gradient_variance.py:" in advice and "without a baseline" in advice
    assert "with a decaying average" in text and "with leave-one-out" not in text
    assert report._repr_html_().count("<table") == 2
    axes = report.plot()
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == report._ranked()[0].site
    with pytest.raises(KeyError, match="'x' has no score function"):
        report.site("x")


def test_moments_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    draws = torch.randn(50, 2, 3)
    moments = Moments([("x", "x"), ("x", "y")])
    for x, y in draws:
        moments.add({"x": {"p": x}, "y": {"p": y + 2 * x}})
    x, y = draws[:, 0].double(), (draws[:, 1] + 2 * draws[:, 0]).double()
    assert moments.covariance("x", "x")["p"] == pytest.approx(float(x.var(0).sum()))
    expected = ((x - x.mean(0)) * (y - y.mean(0))).sum() / 49
    assert moments.covariance("x", "y")["p"] == pytest.approx(float(expected))


def test_a_part_that_is_not_always_there_is_zero() -> None:
    moments = Moments([("x", "x")])
    for k in range(4):
        moments.add({"x": {"p": torch.tensor([1.0])} if k % 2 else {}})
    assert moments.covariance("x", "x")["p"] == pytest.approx(1 / 3)


def test_of_every_cost_there_is_one_choice() -> None:
    """Pyro's ``Trace_ELBO`` multiplies each score function by every cost: that is its variance, exactly."""
    plain = sgc.compile(model, guide, backend="eager", objective="Trace_ELBO")
    report = plain.gradient_variance(samples=1500)
    assert report.total == pytest.approx(variance(by_hand()["no Rao-Blackwellisation"]), rel=0.2)
    for row in report.sites:
        assert {row.without_baseline, row.without_rao_blackwellisation, row.with_decaying_average} == {None}
    (advice,) = report.advice()
    assert "multiplied by every cost" in advice and "a TraceGraph_ELBO has" in advice


@pytest.mark.parametrize("particles", [1, 2])
def test_of_enumerated_costs_there_is_one_term(particles: int) -> None:
    """Of ``z`` in two states, one is enumerated and the other drawn; the gradient is that of the draw."""

    def both() -> None:
        drawn_ = pyro.sample("drawn", dist.Bernoulli(0.3))
        pyro.sample("low", dist.Bernoulli(0.2 + 0.5 * drawn_))

    def half_enumerated() -> None:
        q = dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3)))
        pyro.sample("drawn", q, infer={"enumerate": None})
        pyro.sample("low", dist.Bernoulli(logits=pyro.param("b", torch.tensor(-0.2))), infer={"enumerate": "parallel"})

    options: dict[str, Any] = {"objective": "TraceEnum_ELBO", "num_particles": particles, "max_plate_nesting": 0}
    loss_module = sgc.compile(both, half_enumerated, backend="eager", **options)
    report = loss_module.gradient_variance(samples=300)
    assert [row.site for row in report.sites] == [OTHER_TERMS]
    torch.manual_seed(5)
    gradients = []
    for _ in range(300):
        loss_module.zero_grad()
        loss_module().backward()
        gradients.append(torch.stack([parameter.grad for parameter in loss_module.parameters()]))
    drawn_variance = torch.stack(gradients).double().var(0).sum().item()
    assert drawn_variance > 0
    assert report.total == pytest.approx(drawn_variance, rel=5 * math.sqrt(4 / 300))


def test_wrong_requests_are_told() -> None:
    with pytest.raises(ArgumentError, match="at least 2 samples"):
        sgc.compile(model, guide, backend="eager").gradient_variance(samples=1)


def test_a_call_that_fails_a_check_is_told() -> None:
    def bad(scale: Tensor) -> None:
        pyro.sample("x", dist.Normal(0.0, scale), obs=torch.tensor(X))

    def empty(scale: Tensor) -> None:
        pyro.param("a", torch.tensor(0.3))

    loss_module = sgc.compile(bad, empty, backend="eager")
    loss_module(torch.tensor(1.0))
    with pytest.raises(SgcError, match="fails a check of Pyro's validation"):
        loss_module.gradient_variance(torch.tensor(-1.0), samples=2)
