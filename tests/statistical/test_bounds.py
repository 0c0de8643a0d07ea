"""The importance weighted bound: the expectation of value and gradient over every outcome of all particles is exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from tests.statistical.enumerate import binary, categories, estimates_of_particles, log_joint, outcomes
from tests.statistical.test_exact import Program, chain, logits, mixed, none, plates


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def in_one_plate() -> Program:
    """All sites are in one plate: a bound for each of its elements."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(logits=logits("p", 0.3, -0.2)))
            pyro.sample("x", dist.Normal(z, 0.6), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=logits("q", 0.4, -0.7)))

    return model, guide, (torch.tensor([0.2, 1.3]),), {"z": binary(2)}


def below_one_plate() -> Program:
    """The sites have one plate in common, and some a second one, which is added up before the bound is taken."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(logits=logits("p", 0.3)))
            with pyro.plate("parts", 2, dim=-1):
                pyro.sample("x", dist.Normal(z, 0.6), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=logits("q", 0.4, -0.7).unsqueeze(-1)))

    return model, guide, (torch.tensor([[0.2, 1.3], [0.5, -0.4]]),), {"z": binary(2, 1)}


def with_a_point() -> Program:
    """A point in the guide, whose gradient is pathwise, upstream of a choice and of what is observed."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(logits("p", 0.3)[0], 1.0))
        z = pyro.sample("z", dist.Categorical(logits=a * torch.tensor([0.4, -0.1, 0.2])))
        pyro.sample("x", dist.Normal(a + z, 0.9), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.sample("a", dist.Delta(logits("at", 0.8)[0]))
        pyro.sample("z", dist.Categorical(logits=a * logits("q", 0.4, -0.7, 0.1)))

    return model, guide, (torch.tensor(0.7),), {"z": categories(3)}


def scaled_and_masked() -> Program:
    """The log weight of a scaled or masked site is that; the density of its draw, which is scored, is neither."""

    def model(x: Tensor) -> None:
        with poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.Bernoulli(logits=logits("p", 0.3)[0]))
        with pyro.plate("data", 2), poutine.mask(mask=torch.tensor([True, False])):
            y = pyro.sample("y", dist.Bernoulli(logits=z - 0.3))
        pyro.sample("x", dist.Normal(z + y.sum(), 0.9), obs=x)

    def guide(x: Tensor) -> None:
        with poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.Bernoulli(logits=logits("qz", 0.8)[0]))
        with pyro.plate("data", 2), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("y", dist.Bernoulli(logits=logits("qy", 0.4, -0.7) + z))

    return model, guide, (torch.tensor(0.7),), {"z": binary(), "y": binary(2)}


def drawn_of_scaled_and_masked(x: Tensor) -> None:
    """Its guide without scale and mask."""
    z = pyro.sample("z", dist.Bernoulli(logits=logits("qz", 0.8)[0]))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.Bernoulli(logits=logits("qy", 0.4, -0.7) + z))


def log_weight(program: Program, values: dict[str, Tensor], dims: tuple[int, ...] | None) -> Tensor:
    """That of a particle with these values: a number, or for each element what is left by a sum over ``dims``."""
    model, guide, args, _ = program
    guide_trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(*args)
    drawn = {name: site["value"] for name, site in guide_trace.nodes.items() if site["type"] == "sample"}
    model_trace = poutine.trace(poutine.condition(model, data=drawn)).get_trace(*args)
    total = torch.zeros(())
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
                log_prob = site["log_prob"]
                total = total + sign * (log_prob.sum() if dims is None else log_prob.sum(dims) if dims else log_prob)
    return total


def exact_bound(
    program: Program, drawn: Callable[..., Any], count: int, dims: tuple[int, ...] | None, leaves: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Minus the expected bound, a sum over all outcomes of all particles, and its gradient by autograd."""
    args, supports = program[2:]
    single = [(log_weight(program, values, dims), log_joint(drawn, args, values)) for values in outcomes(supports)]
    loss = torch.zeros(())
    for together in itertools.product(single, repeat=count):
        weights = torch.stack([own for own, _ in together])
        bound = (torch.logsumexp(weights, 0) - math.log(count)).sum()
        loss = loss - torch.stack([log_q for _, log_q in together]).sum().exp() * bound
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)]


@dataclass(frozen=True)
class Bounded:
    """A program with particles; ``dims`` as for :func:`log_weight`, ``drawn`` one whose density is that of draws."""

    make: Callable[[], Program]
    count: int
    dims: tuple[int, ...] | None = None
    drawn: Callable[..., Any] | None = None


SEQUENTIAL = {
    "chain": Bounded(lambda: chain(none), 2),
    "plates": Bounded(lambda: plates(none), 2),
    "mixed": Bounded(lambda: mixed(none), 4),
    "in one plate": Bounded(in_one_plate, 3, ()),
    "below one plate": Bounded(below_one_plate, 2, (-1,)),
    "with a point": Bounded(with_a_point, 3),
    "scaled and masked": Bounded(scaled_and_masked, 2, None, drawn_of_scaled_and_masked),
}
VECTORISED = ("plates", "mixed", "in one plate", "below one plate")
CASES = [*((name, False) for name in SEQUENTIAL), *((name, True) for name in VECTORISED)]


def compiled(case: Bounded, vectorised: bool) -> tuple[Program, sgc.LossModule, list[Tensor]]:
    program = case.make()
    module = sgc.compile(
        *program[:2], backend="eager", num_particles=case.count, vectorize_particles=vectorised, objective="iwae"
    ).initialize(*program[2])
    return program, module, list(module.param_store.parameters())


@pytest.mark.parametrize(("name", "vectorised"), CASES)
def test_expected_value_and_gradient_are_exact(name: str, vectorised: bool) -> None:
    case = SEQUENTIAL[name]
    program, module, leaves = compiled(case, vectorised)
    drawn = case.drawn or program[1]
    exact_loss, exact = exact_bound(program, drawn, case.count, case.dims, leaves)
    loss, sums = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    for probability, value, gradients in estimates_of_particles(module, drawn, program[2], program[3], leaves):
        loss = loss + probability * value
        sums = [total + probability * gradient for total, gradient in zip(sums, gradients, strict=True)]
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(sums, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in exact)


@pytest.mark.parametrize("name", ["mixed", "in one plate", "chain"])
def test_variance_is_lower_than_without_the_others(name: str) -> None:
    """Than that of the score times the whole bound; both have the exact expectation."""
    case = SEQUENTIAL[name]
    program, module, leaves = compiled(case, False)
    _, guide, args, supports = program
    ours = [
        (probability, torch.cat([gradient.flatten() for gradient in gradients]))
        for probability, _, gradients in estimates_of_particles(module, guide, args, supports, leaves)
    ]
    single = [(log_weight(program, values, case.dims), log_joint(guide, args, values)) for values in outcomes(supports)]
    plain = []
    for together in itertools.product(single, repeat=case.count):
        bound = (torch.logsumexp(torch.stack([own for own, _ in together]), 0) - math.log(case.count)).sum()
        log_q = torch.stack([log_q for _, log_q in together]).sum()
        gradients = torch.autograd.grad(-bound - bound.detach() * log_q, leaves, allow_unused=True, retain_graph=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)]
        plain.append((log_q.detach().exp(), torch.cat([gradient.flatten() for gradient in filled])))

    def moments(estimates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
        first = sum((p * g for p, g in estimates), torch.zeros(()))
        return first, float((sum((p * g**2 for p, g in estimates), torch.zeros(())) - first**2).sum())

    (mean, variance), (plain_mean, plain_variance) = moments(ours), moments(plain)
    assert torch.allclose(mean, plain_mean, rtol=1e-10, atol=1e-12)
    assert variance < 0.7 * plain_variance


def test_the_loss_does_not_grow_with_the_particles() -> None:
    """More particles are a better bound (Burda et al. 2016, theorem 1), and one is the ELBO."""
    losses = []
    for count in (2, 3, 4):
        pyro.clear_param_store()
        case = replace(SEQUENTIAL["mixed"], count=count)
        program, _, leaves = compiled(case, False)
        losses.append(exact_bound(program, program[1], count, None, leaves)[0])
    elbo = exact_bound(program, program[1], 1, None, leaves)[0]
    assert elbo > losses[0] > losses[1] > losses[2]


def test_impossible_particles_have_no_weight() -> None:
    """Their log weight is minus infinity. The loss is finite where one is possible, the gradient where two are: what
    one adds to a bound of impossible ones is infinite.
    """

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("never", torch.where(z > 0, torch.tensor(-math.inf), torch.tensor(0.0)))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=logits("q", 0.3)[0]))

    q = float(torch.tensor(0.3).sigmoid())
    for vectorised in (False, True):
        pyro.clear_param_store()
        module = sgc.compile(
            model, guide, backend="eager", num_particles=3, vectorize_particles=vectorised, objective="iwae"
        ).initialize()
        leaves = list(module.param_store.parameters())
        possible = []
        for probability, loss, (gradient,) in estimates_of_particles(module, guide, (), {"z": binary()}, leaves):
            ones = min(range(4), key=lambda k: abs(q**k * (1 - q) ** (3 - k) - float(probability)))
            assert bool(loss.isfinite()) == (ones < 3)
            assert bool(gradient.isfinite().all()) == (ones < 2)
            possible.append(3 - ones)
        assert sorted(possible) == [0, 1, 1, 1, 2, 2, 2, 3]
