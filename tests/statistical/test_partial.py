"""Rejection samplers: the score function of their acceptance stands beside the pathwise gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma, ShapeAugmentedGamma
from torch import Tensor

import sgc
from sgc.graph.nodes import Estimator


def rejection(a: Tensor) -> Any:
    return RejectionStandardGamma(a)


def augmented(a: Tensor) -> Any:
    return ShapeAugmentedGamma(a, torch.ones(()))


def build(family: Callable[[Tensor], Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", family(pyro.param("a", torch.tensor(1.5))))

    return model, guide


@pytest.mark.parametrize("family", [rejection, augmented])
def test_gradient_is_that_of_trace_elbo(family: Callable[[Tensor], Any]) -> None:
    """With one latent site all costs are downstream, and Pyro's Trace_ELBO, which keeps the term, agrees."""
    model, guide = build(family)
    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.graph.estimator("z") is Estimator.PARTIAL
    parameter = next(module.parameters())
    for seed in range(3):
        pyro.set_rng_seed(seed)
        module().backward()
        ours, parameter.grad = parameter.grad, None
        pyro.set_rng_seed(seed)
        pyro.infer.Trace_ELBO().loss_and_grads(model, guide)
        assert ours is not None and torch.allclose(ours, parameter.grad, rtol=1e-5)
        parameter.grad = None


def test_to_event_keeps_the_term() -> None:
    def build_vector(event: bool) -> tuple[Callable[[], None], Callable[[], None]]:
        def model() -> None:
            z = pyro.sample("z", dist.Gamma(torch.full((1,), 2.0), 1.0).to_event(1) if event else dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

        def guide() -> None:
            a = pyro.param("a", torch.tensor(1.5))
            pyro.sample("z", rejection(a.expand(1)).to_event(1) if event else rejection(a))

        return model, guide

    gradients = []
    for event in (False, True):
        pyro.clear_param_store()
        module = sgc.compile(*build_vector(event), backend="eager").initialize()
        pyro.set_rng_seed(1)
        module().backward()
        gradients.append(next(module.parameters()).grad)
    assert torch.allclose(*gradients)
