"""A call that is not valid leaves arguments and buffers as they were, however many particles it has."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer


def model(x: Tensor, holder: dict[str, Any]) -> None:
    x.add_(1.0)
    z = pyro.sample("z", dist.Normal(1.5, 1.0))
    pyro.sample("o", dist.Normal(x.sum(), z), obs=torch.tensor(0.0))


def guide(x: Tensor, holder: dict[str, Any]) -> None:
    pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(1.5)), 1.0))


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize("num_particles", [1, 3, 6])
def test_arguments(num_particles: int, backend: str) -> None:
    loss_module = sgc.compile(model, guide, backend=backend, num_particles=num_particles)
    invalid = 0
    for seed in range(15):
        pyro.set_rng_seed(seed)
        x = torch.zeros(2)
        try:
            loss_module(x, {})
        except ValueError:
            invalid += 1
            assert x.tolist() == [0.0, 0.0]
        else:
            assert x.tolist() == [float(num_particles)] * 2
    assert 0 < invalid < 15


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def model(self, x: Tensor) -> None:
        self.count.add_(0.1)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + self.count.sum(), 1.0), obs=x.sum())

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))


def test_an_argument_that_is_an_expanded_view_of_what_is_written() -> None:
    """It cannot be written itself, so that nothing is put back by way of it."""

    def trained(elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = Counting()
        svi_of = sgc.SVI if isinstance(elbo, sgc.infer.TraceGraph_ELBO) else pyro.infer.SVI
        svi = svi_of(net.model, net.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        return [svi.step(net.count.expand(2, 3) if step % 2 else torch.ones(2, 3)) for step in range(5)]

    expected = trained(pyro.infer.TraceGraph_ELBO())
    assert trained(sgc.infer.TraceGraph_ELBO(backend="eager")) == pytest.approx(expected, rel=1e-5)
