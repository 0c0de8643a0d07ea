"""Leave-one-out baselines over particles: exact in expectation, with less variance, in either way to run particles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from tests.statistical.enumerate import binary, categories, estimates_of_particles, exact_gradient
from tests.statistical.test_exact import Infer, Program, chain, masked_and_scaled, mixed, none, plates


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def leave_one_out(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"baseline": {"use_leave_one_out": True}}


def at_one_site(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return leave_one_out(name, shape) if name in ("a", "z") else {}


def pathwise_below(infer: Infer) -> Program:
    """A choice, and below it a choice that a pathwise gradient passes by."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Categorical(logits=pyro.param("p", torch.tensor([0.1, -0.3, 0.2]))))
        pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor([0.3, -0.5, 1.0]))[z], 0.8), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("q", torch.tensor([0.4, 0.0, -0.2]))), infer=infer("z", ()))

    return model, guide, (torch.tensor(0.6),), {"z": categories(3)}


SEQUENTIAL = [(chain, 2), (plates, 2), (masked_and_scaled, 2), (mixed, 2), (mixed, 3), (mixed, 5), (pathwise_below, 3)]
VECTORISED = [(plates, 2), (mixed, 2), (mixed, 3), (pathwise_below, 3)]
CASES = [(*case, False) for case in SEQUENTIAL] + [(*case, True) for case in VECTORISED]


@pytest.mark.parametrize(("program", "count", "vectorised"), CASES)
@pytest.mark.parametrize("infer", [leave_one_out, at_one_site])
def test_expected_gradient_is_exact(
    program: Callable[[Infer], Program], count: int, vectorised: bool, infer: Infer
) -> None:
    model, guide, args, supports = program(infer)
    module = sgc.compile(model, guide, backend="eager", num_particles=count, vectorize_particles=vectorised)
    leaves = list(module.initialize(*args).param_store.parameters())
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves)
    loss, sums = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    for probability, value, gradients in estimates_of_particles(module, guide, args, supports, leaves):
        loss = loss + probability * value
        sums = [total + probability * gradient for total, gradient in zip(sums, gradients, strict=True)]
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(sums, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize(("program", "count"), [(plates, 2), (mixed, 3), (pathwise_below, 3)])
def test_variance_is_lower(program: Callable[[Infer], Program], count: int, vectorised: bool) -> None:
    """Over all outcomes, of the gradient in the guide's parameters; with a cost far from zero it is much lower."""

    def variance(infer: Infer) -> float:
        pyro.clear_param_store()
        model, guide, args, supports = program(infer)

        def far(*args: Any) -> None:
            model(*args)
            pyro.factor("far", torch.tensor(5.0))

        module = sgc.compile(far, guide, backend="eager", num_particles=count, vectorize_particles=vectorised)
        module.initialize(*args)
        leaves = [t for name, t in pyro.get_param_store()._params.items() if name.startswith("q")]
        first = second = torch.zeros(())
        for probability, _, gradients in estimates_of_particles(module, guide, args, supports, leaves):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            first, second = first + probability * flat, second + probability * flat**2
        return float((second - first**2).sum())

    assert variance(leave_one_out) < 0.9 * variance(none)


@pytest.mark.parametrize(("program", "count"), [(plates, 2), (mixed, 4)])
def test_vectorised_and_sequential_particles_agree(program: Callable[[Infer], Program], count: int) -> None:
    model, guide, args, supports = program(leave_one_out)
    every = []
    for vectorised in (False, True):
        module = sgc.compile(model, guide, backend="eager", num_particles=count, vectorize_particles=vectorised)
        leaves = list(module.initialize(*args).param_store.parameters())
        every.append(list(estimates_of_particles(module, guide, args, supports, leaves)))
    for (_, loss, gradients), (_, other_loss, others) in zip(*every, strict=True):
        assert torch.allclose(loss, other_loss, rtol=1e-12)
        for one, other in zip(gradients, others, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_the_baseline_is_the_mean_of_the_others_by_plate_element() -> None:
    """Written out by hand for two particles: with one other, the baseline is its cost."""

    def model() -> None:
        with pyro.plate("rows", 2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([0.2, 1.4]))

    def guide() -> None:
        with pyro.plate("rows", 2):
            logits = pyro.param("q", torch.tensor([0.1, -0.4]))
            pyro.sample("z", dist.Bernoulli(logits=logits), infer=leave_one_out("z", (2,)))

    module = sgc.compile(model, guide, backend="eager", num_particles=2).initialize()
    (leaf,) = module.param_store.parameters()
    draws = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    supports = {"z": list(draws)}
    gradients = [g for _, _, (g,) in estimates_of_particles(module, guide, (), supports, [leaf])]
    q = leaf.detach().clone().requires_grad_()
    log_q = dist.Bernoulli(logits=q).log_prob(draws)
    cost = dist.Bernoulli(0.3).log_prob(draws) + dist.Normal(draws, 1.0).log_prob(torch.tensor([0.2, 1.4])) - log_q
    cost = cost.detach()
    surrogate = -(log_q * (cost - cost.flip(0))).sum() / 2
    assert torch.allclose(gradients[1], torch.autograd.grad(surrogate, q)[0], rtol=1e-12)


def test_enumeration_reaches_every_outcome() -> None:
    model, guide, args, supports = mixed(leave_one_out)
    module = sgc.compile(model, guide, backend="eager", num_particles=3).initialize(*args)
    leaves = list(module.param_store.parameters())
    probabilities = [p for p, _, _ in estimates_of_particles(module, guide, args, supports, leaves)]
    assert len(probabilities) == len(binary()) ** 3
    assert torch.allclose(torch.stack(probabilities).sum(), torch.ones(()))
