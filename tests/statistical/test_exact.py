"""The estimator's expectation equals the exact gradient of the exact ELBO, but for rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from tests.statistical.enumerate import Supports, binary, categories, exact_gradient, expected_estimate


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def logits(name: str, *values: float) -> Tensor:
    return pyro.param(name, torch.tensor(values))


Infer = Callable[[str, tuple[int, ...]], dict[str, Any]]
Program = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], Supports]


def chain(infer: Infer) -> Program:
    """Three discrete sites, each conditioned on the last in guide and model, one observed through a table."""

    def model(x: Tensor) -> None:
        p = logits("p", 0.3, -0.2, 0.5)
        a = pyro.sample("a", dist.Bernoulli(logits=p[0]))
        b = pyro.sample("b", dist.Categorical(logits=torch.stack([p[1] * a, p[2] + a, p[0] - a])))
        c = pyro.sample("c", dist.Bernoulli(logits=p[b]))
        pyro.sample("x", dist.Normal(a + 0.5 * b - c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        q = logits("q", 0.1, 0.4, -0.3, 0.2)
        a = pyro.sample("a", dist.Bernoulli(logits=q[0]), infer=infer("a", ()))
        b = pyro.sample("b", dist.Categorical(logits=q[1:] * (1 + a)), infer=infer("b", ()))
        pyro.sample("c", dist.Bernoulli(logits=q[b]), infer=infer("c", ()))

    return model, guide, (torch.tensor(0.7),), {"a": binary(), "b": categories(3), "c": binary()}


def plates(infer: Infer) -> Program:
    """A global switch, local discrete sites in a plate, and a nested plate of observations."""

    def model(x: Tensor) -> None:
        p = logits("p", 0.3, -0.4)
        g = pyro.sample("g", dist.Bernoulli(logits=p[0]))
        with pyro.plate("outer", 2, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=p[1] + g))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("x", dist.Normal(z + g, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=logits("qg", 0.2)[0]), infer=infer("g", ()))
        with pyro.plate("outer", 2, dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=logits("qz", 0.5, -0.6) * (1 + g)), infer=infer("z", (2,)))

    return model, guide, (torch.linspace(-1, 1, 6).reshape(3, 2),), {"g": binary(), "z": binary(2)}


def masked_and_scaled(infer: Infer) -> Program:
    """Sites that are masked in part, under a scale, with a factor and a write in place."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3), pyro.poutine.scale(scale=1.0):
            z = pyro.sample("z", dist.Bernoulli(logits=logits("p", 0.2, 0.1, -0.3)))
            with pyro.poutine.mask(mask=torch.tensor([True, False, True])):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        total = torch.zeros(2)
        total[0] = z[0] + z[1]
        total[1:] = z[2]
        pyro.factor("f", -(total - 0.4).pow(2).sum())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=logits("q", 0.6, -0.1, 0.2)), infer=infer("z", (3,)))

    return model, guide, (torch.tensor([0.3, -0.2, 1.1]),), {"z": binary(3)}


def mixed(infer: Infer) -> Program:
    """A discrete site, and a deterministic pathwise one downstream of it."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=logits("p", 0.2)[0]))
        pyro.sample("x", dist.Normal(z * pyro.param("w", torch.tensor(0.8)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=logits("q", 0.6)[0] * x), infer=infer("z", ()))

    return model, guide, (torch.tensor(1.3),), {"z": binary()}


class Constant(nn.Module):
    """A baseline network of the right shape whose input is any tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full(shape, 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 0.1 * x.sum()


NETWORKS: dict[str, nn.Module] = {}


def none(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {}


def value(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"baseline": {"baseline_value": torch.full(shape, 1.7)}}


def network(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    module = NETWORKS.setdefault(f"{name}{shape}", Constant(shape))
    return {"baseline": {"nn_baseline": module, "nn_baseline_input": torch.ones(2)}}


def decaying(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}}


def decaying_and_network(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    options = {**network(name, shape)["baseline"], **decaying(name, shape)["baseline"]}
    return {"baseline": options}


@pytest.mark.parametrize("program", [chain, plates, masked_and_scaled, mixed])
@pytest.mark.parametrize("infer", [none, value, network, decaying, decaying_and_network])
def test_expected_gradient_is_exact(program: Callable[[Infer], Program], infer: Infer) -> None:
    model, guide, args, supports = program(infer)
    module = sgc.compile(model, guide, backend="eager").initialize(*args)
    leaves = list(module.param_store.parameters())
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves)
    loss, estimated = expected_estimate(module, guide, args, supports, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(estimated, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradient_vanishes_where_the_guide_is_the_posterior() -> None:
    """With q = p(z | x) the ELBO is at its maximum in q: each outcome's cost is the same constant."""
    x = torch.tensor(0.4)
    log_weights = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(x) + torch.tensor([0.3, 0.7]).log()

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x)

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("q", log_weights - log_weights.logsumexp(0))))

    module = sgc.compile(model, guide, backend="eager").initialize()
    leaves = list(module.param_store.parameters())
    _, estimated = expected_estimate(module, guide, (), {"z": categories(2)}, leaves)
    assert estimated[0].abs().max() < 1e-14


def test_discrete_site_and_its_relaxation_to_a_pathwise_one_agree() -> None:
    """The same Gaussian model both ways: pathwise, and by the score function of a distribution without rsample."""

    class NoRsample(dist.Normal):
        has_rsample = False

    def build(family: type[dist.Normal]) -> sgc.LossModule:
        def model() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.6))

        def guide() -> None:
            pyro.sample("z", family(pyro.param("loc", torch.tensor(0.2)), 0.8))

        return sgc.compile(
            model, guide, backend="eager", num_particles=4000, vectorize_particles=True, max_plate_nesting=1
        )

    estimates = []
    for family in (dist.Normal, NoRsample):
        pyro.clear_param_store()
        module = build(family)
        module.initialize()
        pyro.set_rng_seed(3)
        module().backward()
        estimates.append(float(next(iter(module.param_store.parameters())).grad or 0.0))
    exact = 0.2 - (0.6 - 0.2)  # d/dloc of E[-log p(x, z)], the entropy does not depend on loc
    assert abs(estimates[0] - exact) < 0.05  # 4000 draws of standard deviation 2 * 0.8
    assert abs(estimates[1] - exact) < 0.15  # the score function's standard deviation is about 2
