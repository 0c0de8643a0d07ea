"""A sampler that cannot be traced is drawn from without its mask: what it draws does not depend on that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from torch import Tensor

import sgc

ONE, TWO = torch.tensor(1.0), torch.ones(2)

MASKED: dict[str, Callable[[Tensor], Any]] = {
    "scored": lambda mask: dist.VonMises(0.5 * ONE, ONE).mask(mask),
    "below to_event": lambda mask: dist.VonMises(0.5 * TWO, TWO).mask(mask).to_event(1),
    "above to_event": lambda mask: dist.VonMises(0.5 * TWO, TWO).to_event(1).mask(mask),
    "twice": lambda mask: dist.VonMises(ONE, ONE).mask(mask).mask(mask | torch.tensor(True)),
    "reparameterised": lambda mask: dist.ProjectedNormal(TWO).mask(mask),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_depends_on_a_sample(name: str) -> None:
    masked = MASKED[name]

    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", masked(torch.tensor(True)))

    def guide() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))
        pyro.sample("x", masked(z.bool()))

    loss_module = sgc.compile(model, guide, backend="eager").initialize()
    costs = loss_module.graph.downstream_costs("z")
    assert costs == {"log p(z)", "-log q(z)", "-log q(x)"}  # and not log p(x)
    assert not loss_module.verify().differs_by_design
    (logit,) = loss_module.parameters()
    for seed in range(4):
        found = []
        for backward in (
            lambda: loss_module().backward(),
            lambda: pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide),
        ):
            logit.grad = None
            pyro.set_rng_seed(seed)
            backward()
            assert logit.grad is not None
            found.append(logit.grad.clone())
        torch.testing.assert_close(*found)


def test_parameters_of_a_masked_sampler_are_followed() -> None:
    """Those of the distribution below the mask still make its value depend on a sample."""

    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", RejectionGamma(2 * ONE, ONE))

    def guide() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))
        pyro.sample("x", RejectionGamma(1.0 + z, ONE).mask(torch.tensor(True)))

    graph = sgc.capture(model, guide)
    assert "log p(x)" in graph.downstream_costs("z")
