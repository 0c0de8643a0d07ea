"""Which parameters a step moves: each once, whatever its names, and none if the loss depends on none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer

DATA = torch.tensor([0.3, -1.2, 0.8, 1.1, 2.0])

Program = tuple[Callable[..., Any], Callable[..., Any]]


def shared_by_name() -> Program:
    """One network under two names, as where an encoder is tied to a decoder."""
    net = nn.Linear(1, 1)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)

    def model(data: Tensor) -> None:
        pyro.module("decoder", net)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(net(data[:, None])[:, 0] + z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("encoder", net)
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.1))

    return model, guide


def without_parameters() -> Program:
    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=data)

    return model, lambda data: None


def frozen() -> Program:
    loc = nn.Parameter(torch.tensor(0.3), requires_grad=False)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", loc).detach(), 0.1))

    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    return model, guide


def losses(svi: type[Any], elbo: Any, make: Callable[[], Program]) -> list[float]:
    pyro.clear_param_store()
    model, guide = make()
    pyro.set_rng_seed(0)
    stepper = svi(model, guide, pyro.optim.SGD({"lr": 0.01}), elbo)
    return [stepper.step(DATA) for _ in range(4)]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
@pytest.mark.parametrize("make", [shared_by_name, without_parameters, frozen])
def test_steps_are_pyro_s(make: Callable[[], Program], backend: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no parameter receives a gradient
        ours = losses(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend=backend), make)
    theirs = losses(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO(), make)
    assert ours == pytest.approx(theirs, rel=1e-6)
    if make is shared_by_name:
        assert theirs[-1] != theirs[0]


def test_a_torch_optimizer_may_find_nothing_to_do() -> None:
    """Its parameters are those of other batches."""
    weight = torch.tensor(2.0, requires_grad=True)
    model, guide = without_parameters()
    svi = sgc.SVI(model, guide, torch.optim.SGD([weight], lr=0.1), sgc.infer.TraceGraph_ELBO(backend="eager"))
    assert svi.step(DATA) == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(model, guide, DATA))
    assert weight.item() == 2.0
