"""``gradient_variance`` of bounds that take all particles together: exact where all outcomes are enumerated."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.guards.base import Call
from sgc.runtime.variance.other_baselines import OtherBaselines
from sgc.runtime.variance.sampling import drawn
from sgc.runtime.variance.terms import AS_IT_IS, OTHER_TERMS, emit_terms
from tests.runtime.test_gradient_variance import BASELINE, X, enumerated, guide, model, variance

ALPHA = 0.5


def bound(log_weights: Tensor, alpha: float) -> Tensor:
    return (torch.logsumexp((1 - alpha) * log_weights, 0) - math.log(len(log_weights))) / (1 - alpha)


def by_hand(particles: int, objective: str) -> dict[str, list[tuple[float, Tensor]]]:
    """The outcomes of all particles: a probability, and the gradient of the loss in (a, b, shift); also without VIMCO's
    baseline, and of the two sites' terms by themselves.
    """
    alpha = 0.0 if objective == "iwae" else ALPHA
    outcomes: dict[str, list[tuple[float, Tensor]]] = {}
    for values in itertools.product((0.0, 1.0), repeat=2 * particles):
        leaves = a, b, shift = [torch.tensor(v, requires_grad=True) for v in (0.3, -0.2, 0.4)]
        weights, scores = [], []
        for top, low in torch.tensor(values).reshape(-1, 2):
            log_q = [dist.Bernoulli(logits=a).log_prob(top), dist.Bernoulli(logits=b + top).log_prob(low)]
            log_p = dist.Bernoulli(0.3).log_prob(top) + dist.Bernoulli(0.2 + 0.5 * top).log_prob(low)
            weights.append(log_p + dist.Normal(shift * low, 1.0).log_prob(torch.tensor(X)) - sum(log_q))
            scores.append(torch.stack(log_q))
        log_weights = torch.stack(weights)
        whole = bound(log_weights, alpha)
        if objective == "iwae":
            others = []
            for k in range(particles):
                left = [weight for j, weight in enumerate(weights) if j != k]
                others.append(bound(torch.stack([*left, torch.stack(left).mean()]), 0.0))
            factors = {"own": whole - torch.stack(others), "without baselines": whole.expand(particles)}
        else:
            weight = torch.exp((1 - alpha) * (log_weights - whole)) / particles
            factors = {"own": weight / (1 - alpha)}
        probability = math.exp(torch.stack(scores).sum().item())
        for name, factor in factors.items():
            terms = (factor.detach()[:, None] * torch.stack(scores)).sum(0)
            gradient = torch.autograd.grad(-(whole + terms.sum()), leaves, retain_graph=True)
            outcomes.setdefault(name, []).append((probability, torch.stack(gradient)))
    return outcomes


@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize("vectorize", [False, True], ids=["runs", "a plate"])
@pytest.mark.parametrize("objective", ["iwae", "Renyi"])
def test_it_is_exact_over_all_outcomes(particles: int, vectorize: bool, objective: str) -> None:
    program = partial(guide, particles) if vectorize else guide
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorize, "max_plate_nesting": 0}
    options["objective"] = "iwae" if objective == "iwae" else sgc.Renyi(ALPHA)
    report = enumerated(sgc.compile(model, program, backend="eager", **options), ("top", "low"))
    expected = {name: variance(outcomes) for name, outcomes in by_hand(particles, objective).items()}
    assert report.total == pytest.approx(expected["own"], rel=1e-5)
    if objective == "iwae":
        assert report.without_baselines == pytest.approx(expected["without baselines"], rel=1e-5)
    else:
        assert report.without_baselines is None
    assert report.without_rao_blackwellisation is None
    assert {row.site for row in report.sites} == {OTHER_TERMS, "top", "low"}
    assert sum(row.variance for row in report.sites) == pytest.approx(report.total, rel=1e-5)
    mean = sum(p * gradient for p, gradient in by_hand(particles, objective)["own"])
    norms = {row.name: row.mean_norm for row in report.parameters}
    assert [norms[name] for name in ("a", "b", "shift")] == pytest.approx(mean.abs().tolist(), rel=1e-4)


@pytest.mark.parametrize("vectorize", [False, True], ids=["runs", "a plate"])
@pytest.mark.parametrize("objective", ["iwae", sgc.Renyi(ALPHA)])
def test_the_terms_of_sites_in_other_plates_add_up_to_the_gradient(objective: Any, vectorize: bool) -> None:
    def in_plates() -> None:
        with pyro.plate("outer", 2):
            top = pyro.sample("top", dist.Bernoulli(0.3))
            with pyro.plate("inner", 3, dim=-2):
                low = pyro.sample("low", dist.Bernoulli(0.2 + 0.5 * top))
                pyro.sample("x", dist.Normal(pyro.param("shift", torch.tensor(0.4)) * low, 1.0), obs=torch.ones(3, 2))

    def guess() -> None:
        with pyro.plate("outer", 2):
            top = pyro.sample("top", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.1]))))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("low", dist.Bernoulli(logits=pyro.param("b", torch.tensor(-0.2)) + top))

    options: dict[str, Any] = {"num_particles": 3, "vectorize_particles": vectorize, "max_plate_nesting": 2}
    module = sgc.compile(in_plates, guess, backend="eager", objective=objective, **options)
    torch.manual_seed(1)
    module().backward()
    specialization, tensors = module._choose(Call((), {}))
    terms = emit_terms(specialization.graph)
    torch.manual_seed(1)
    total: dict[str, Tensor] = {}
    for _, choice, gradients in drawn(specialization, terms, tensors, (), OtherBaselines(specialization.graph)):
        for name, gradient in gradients.items() if choice == AS_IT_IS else ():
            total[name] = total.get(name, torch.tensor(0.0)) + gradient
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(total[name.removeprefix("param_store.")], parameter.grad)


def test_a_sample_is_within_stated_bounds_of_it_and_says_what_to_do() -> None:
    """The baseline of a site is not looked at, and is not advised."""
    assert BASELINE
    torch.manual_seed(0)
    module = sgc.compile(model, guide, backend="eager", objective="iwae", num_particles=2)
    samples = 600
    report = module.gradient_variance(samples=samples)
    outcomes = by_hand(2, "iwae")["own"]
    mean = sum(p * gradient for p, gradient in outcomes)
    squares = [(p, float((gradient - mean).square().sum())) for p, gradient in outcomes]
    expected = variance(outcomes)
    spread = math.sqrt(sum(p * (square - expected) ** 2 for p, square in squares) / samples)
    assert abs(report.total - expected) < 5 * spread
    assert report.samples == samples
    text = "\n".join(report.advice())
    assert "less the bound of the other particles" in text
    assert "estimators=" not in text
    weighted = sgc.compile(model, guide, backend="eager", objective=sgc.Renyi(0.5), num_particles=2)
    assert 'objective="iwae" has one' in "\n".join(weighted.gradient_variance(samples=samples).advice())
