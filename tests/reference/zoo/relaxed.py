"""Relaxed, straight-through and rejection-sampled sites, and custom autograd functions."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.testing.rejection_exponential import RejectionExponential
from pyro.distributions.testing.rejection_gamma import (
    RejectionStandardGamma,
    ShapeAugmentedBeta,
    ShapeAugmentedDirichlet,
    ShapeAugmentedGamma,
)
from pyro.ops.special import safe_log
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


@entry("Sites", "RelaxedBernoulli and RelaxedOneHotCategorical latents", inductor=True)
def relaxed_sites() -> Case:
    temperature = torch.tensor(0.7)

    def model() -> None:
        b = pyro.sample("b", dist.RelaxedBernoulli(temperature, probs=torch.tensor(0.3)))
        z = pyro.sample("z", dist.RelaxedOneHotCategorical(temperature, probs=torch.ones(3) / 3))
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
        pyro.sample("obs", dist.Normal(b + z @ locs, 0.5), obs=torch.tensor(0.6))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, -0.1, 0.2]))
        pyro.sample("b", dist.RelaxedBernoulli(temperature, logits=logits[0]))
        pyro.sample("z", dist.RelaxedOneHotCategorical(temperature, logits=logits))

    return Case(model, guide)


@entry("Sites", "Straight-through discrete samples, with their custom gradient")
def straight_through_sites() -> Case:
    temperature = torch.tensor(0.5)

    def model() -> None:
        b = pyro.sample("b", dist.RelaxedBernoulliStraightThrough(temperature, probs=torch.tensor(0.4)))
        uniform = torch.ones(3) / 3
        z = pyro.sample("z", dist.RelaxedOneHotCategoricalStraightThrough(temperature, probs=uniform))
        pyro.sample("obs", dist.Normal(b + z @ torch.arange(3.0), 0.5), obs=torch.tensor(1.6))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, -0.1, 0.2]))
        prob = pyro.param("prob", torch.tensor(0.6), constraint=constraints.unit_interval)
        pyro.sample("b", dist.RelaxedBernoulliStraightThrough(temperature, probs=prob))
        pyro.sample("z", dist.RelaxedOneHotCategoricalStraightThrough(temperature, logits=logits))

    return Case(model, guide)


@entry(
    "Sites",
    "Rejection-sampled latents, whose samplers loop on their data",
    differs="Pyro leaves out the score function of a rejection sampler's acceptance",
)
def rejection_sampled_sites() -> Case:
    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 3.0]), 1.0).to_event(1))
        wait = pyro.sample("wait", dist.Exponential(1.0))
        pyro.sample("obs", dist.Poisson(rate + wait).to_event(1), obs=torch.tensor([1.0, 4.0]))

    def guide() -> None:
        concentration = pyro.param("conc", torch.tensor([2.0, 3.5]), constraint=constraints.greater_than(1.0))
        pyro.sample("rate", RejectionStandardGamma(concentration).to_event(1))
        factor = pyro.param("factor", torch.tensor(0.6), constraint=constraints.unit_interval)
        pyro.sample("wait", RejectionExponential(positive("wait_rate", 1.5), factor))

    return Case(model, guide)


@entry(
    "Sites",
    "Shape-augmented Gamma, Dirichlet and Beta samplers",
    differs="Pyro leaves out the score function of a rejection sampler's acceptance",
)
def shape_augmented_sites() -> Case:
    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([1.0, 2.0]), torch.ones(2)).to_event(1))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        prob = pyro.sample("prob", dist.Beta(2.0, 2.0))
        pyro.sample("obs", dist.Normal(rate * weights, prob).to_event(1), obs=torch.tensor([0.4, 0.7]))

    def guide() -> None:
        pyro.sample("rate", ShapeAugmentedGamma(positive("shape", 0.8, 1.7), positive("rate_", 1.0, 1.3)).to_event(1))
        pyro.sample("weights", ShapeAugmentedDirichlet(positive("conc", 0.9, 1.4)))
        pyro.sample("prob", ShapeAugmentedBeta(positive("heads", 1.2), positive("tails", 1.5)))

    return Case(model, guide)


@entry("Functions", "OMTMultivariateNormal, whose gradient is an autograd function of Pyro")
def omt_multivariate_normal() -> Case:
    def model() -> None:
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        pyro.sample("obs", dist.Normal(z.tanh().sum(), 0.5), obs=torch.tensor(0.8))

    def guide() -> None:
        tril = pyro.param("tril", torch.eye(3), constraint=constraints.lower_cholesky)
        pyro.sample("z", dist.OMTMultivariateNormal(pyro.param("loc", torch.tensor([0.1, 0.2, 0.3])), tril))

    return Case(model, guide)


@entry("Functions", "Mixtures of normals with pathwise gradients, an affine Beta and an AVF normal")
def pathwise_mixtures() -> Case:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        y = pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        v = pyro.sample("v", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
        pyro.sample("obs", dist.Normal(x + y + v * u, 1.0).to_event(1), obs=torch.tensor([0.5, -0.5]))

    def guide() -> None:
        locs = pyro.param("locs", torch.tensor([[0.0, 0.5], [1.0, -0.5]]))
        logits = pyro.param("logits", torch.tensor([0.1, 0.3]))
        scale = positive("scale", 0.5, 0.8)
        pyro.sample("x", dist.MixtureOfDiagNormals(locs, scale.expand(2, 2), logits))
        pyro.sample("y", dist.MixtureOfDiagNormalsSharedCovariance(locs, scale, logits))
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
        variates = pyro.param("variates", torch.full((2, 1, 2), 0.1))
        pyro.sample("v", dist.AVFMultivariateNormal(torch.zeros(2), tril, variates))
        pyro.sample(
            "u",
            dist.AffineBeta(positive("a", 2.0), positive("b", 1.5), torch.tensor(-1.0), torch.tensor(3.0)),
        )

    return Case(model, guide)


@entry("Functions", "pyro.ops.special.safe_log, which clamps its gradient at zero")
def safe_logarithm() -> Case:
    def model() -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        known = torch.tensor([0.0, 1.0, 1.0])
        logits = safe_log(known * p)
        pyro.sample("obs", dist.Categorical(logits=logits), obs=torch.tensor(1))

    def guide() -> None:
        pyro.sample("p", dist.Beta(positive("a", 1.5), positive("b", 2.5)))

    return Case(model, guide)


class Clamp(torch.autograd.Function):
    """Clamps its input, and lets the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class Square(torch.autograd.Function):
    """Squares its input, saving it for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2.5 * x * grad


@entry(
    "Functions",
    "The user's own autograd functions, with gradients that autograd would not give",
    inductor=True,
)
def users_own_function() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(Clamp.apply(z, -0.1, 0.1) + Square.apply(z), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.4)), positive("scale", 0.5)))

    return Case(model, guide, (torch.tensor([0.2, 0.6]),))


@entry("Functions", "A function on a sample that carries provenance from a discrete site")
def function_downstream_of_discrete() -> Case:
    def model(data: Tensor) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(Square.apply(b + 1.0), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))

    return Case(model, guide, (torch.tensor([0.2, 3.6]),))


@entry("Functions", "Derivatives inside the model, and a checkpointed piece of it")
def derivatives_in_the_model() -> Case:
    def energy(x: Tensor, w: Tensor) -> Tensor:
        return (w * x.sin()).sum()

    def model(data: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = checkpoint(torch.exp, 0.1 * w.sum(), use_reentrant=False)
        pyro.sample("obs", dist.Normal(w.sin(), scale).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.4, -0.4]))
        pyro.sample("w", dist.Normal(loc, positive("scale", 0.3)).to_event(1))

    return Case(model, guide, (torch.tensor([0.2, 0.3]),))
