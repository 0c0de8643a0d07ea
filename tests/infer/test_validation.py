"""``validate_data``: observed data that come later are checked as Pyro checks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc.infer


def guide(*_: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))


def bernoulli(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def of_an_event(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Gamma(z.exp(), 1.0).expand(x.shape).to_event(1), obs=x + 0.5)


def categorical(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Categorical(logits=torch.stack([z, -z])), obs=x)


def uniform_up_to_a_parameter(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    top = pyro.param("top", torch.tensor(1.5))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Uniform(0.0, top), obs=x)


@pytest.mark.parametrize("model", [bernoulli, of_an_event, categorical, uniform_up_to_a_parameter])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_invalid_data_raise_pyros_error(model: Callable[[Tensor], None], backend: Any) -> None:
    elbo = sgc.infer.TraceGraph_ELBO(validate_data=True, backend=backend)
    elbo.loss_and_grads(model, guide, torch.tensor([0.0, 1.0]))
    elbo.loss_and_grads(model, guide, torch.tensor([1.0, 1.0]))
    before = pyro.param("loc").grad.clone()
    for _ in range(2):
        with pytest.raises(ValueError, match="at site 'x'"):
            elbo.loss_and_grads(model, guide, torch.tensor([1.0, -2.0]))
    assert torch.equal(pyro.param("loc").grad, before)
    elbo.loss_and_grads(model, guide, torch.tensor([1.0, 0.0]))
    assert len(elbo.compiled(model, guide).specializations) == 1


def test_a_write_into_known_data_is_noticed() -> None:
    elbo, x = sgc.infer.TraceGraph_ELBO(validate_data=True), torch.tensor([0.0, 1.0])
    for _ in range(3):
        elbo.loss(bernoulli, guide, x)
    x[0] = 2.0
    with pytest.raises(ValueError, match="Bernoulli"):
        elbo.loss(bernoulli, guide, x)


def test_a_parameter_that_moves_the_support() -> None:
    elbo, x = sgc.infer.TraceGraph_ELBO(validate_data=True), torch.tensor([0.0, 1.0])
    elbo.loss(uniform_up_to_a_parameter, guide, x)
    with torch.no_grad():
        pyro.param("top").fill_(0.5)
    with pytest.raises(ValueError, match="Uniform"):
        elbo.loss(uniform_up_to_a_parameter, guide, x)


def test_what_cannot_be_checked_is_left_alone() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("free", dist.Normal(0.0, 1.0), obs=z)  # the value is a sample
        pyro.sample("bounded", dist.Uniform(z - 1e3, z + 1e3), obs=x.sum())  # the support is
        with pyro.plate("n", len(x)), pyro.poutine.mask(mask=x > -1):
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x.clamp(min=0))

    elbo = sgc.infer.TraceGraph_ELBO(validate_data=True)
    for values in ([0.0, 1.0], [-3.0, 1.0]):
        elbo.loss(model, guide, torch.tensor(values))
    assert "in their support" not in elbo.compiled(model, guide).guards()


def test_it_is_off_by_default_and_follows_pyros_switch() -> None:
    sgc.infer.TraceGraph_ELBO().loss(bernoulli, guide, torch.tensor([0.0, 1.0]))
    elbo = sgc.infer.TraceGraph_ELBO(validate_data=True)
    with pyro.validation_enabled(False):
        losses = [elbo.loss(bernoulli, guide, torch.tensor(x)) for x in ([0.0, 1.0], [0.0, 2.0], [3.0, 2.0])]
    assert all(loss == loss for loss in losses)
    assert len(elbo.compiled(bernoulli, guide).specializations) == 2
