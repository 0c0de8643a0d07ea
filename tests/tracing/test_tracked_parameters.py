"""Parameters whose first values come from tensors that Pyro tracks, below a site without a reparameterised sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor

import sgc
import sgc.infer
from sgc.errors import CaptureError

Statement = Callable[[Tensor], Tensor]


def of_its_shape(b: Tensor) -> Tensor:
    return pyro.param("p", lambda: b.new_full((2,), 0.5))


def of_its_value(b: Tensor) -> Tensor:
    return pyro.param("p", lambda: 0.3 + 0.1 * b.detach())


def constrained(b: Tensor) -> Tensor:
    return pyro.param("p", lambda: torch.ones(2) + b.detach(), constraint=constraints.positive)


def centred(b: Tensor) -> Tensor:
    with poutine.reparam(config={"y": LocScaleReparam()}):
        return pyro.sample("y", dist.Normal(b + 1.0, 1.0 + b))


def program(statement: Statement) -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.4))
        with poutine.block(expose=["p"]):
            value = statement(b).sum() + b
        pyro.sample("x", dist.Normal(value, 1.0), obs=torch.tensor(0.7))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))

    return model, guide


def centring() -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(centred(b), 1.0), obs=torch.tensor(0.7))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))
        pyro.sample("y_decentered", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 1.0))

    return model, guide


PROGRAMS = {
    "shape": lambda: program(of_its_shape),
    "value": lambda: program(of_its_value),
    "constraint": lambda: program(constrained),
    "centring": centring,
}


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_they_are_trained_as_pyro_trains_them(make: Callable[[], Any]) -> None:
    def trained(elbo: Any) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        svi_of = sgc.SVI if isinstance(elbo, sgc.infer.TraceGraph_ELBO) else pyro.infer.SVI
        svi = svi_of(*make(), pyro.optim.Adam({"lr": 0.1}), elbo)
        losses = [svi.step() for _ in range(6)]
        store = pyro.get_param_store()
        if isinstance(elbo, sgc.infer.TraceGraph_ELBO):
            assert not any(isinstance(tensor, ProvenanceTensor) for tensor in store._params.values())
        return losses, {name: torch.as_tensor(value.detach().tolist()) for name, value in store.items()}

    losses, expected = trained(pyro.infer.TraceGraph_ELBO())
    ours, found = trained(sgc.infer.TraceGraph_ELBO(backend="eager"))
    assert ours == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(found) > 1


def test_one_that_pyro_has_made_before() -> None:
    model, guide = program(of_its_shape)
    elbo = pyro.infer.TraceGraph_ELBO()
    elbo.loss(model, guide)
    tensor = pyro.get_param_store()._params["p"]
    assert isinstance(tensor, ProvenanceTensor)
    with pytest.raises(
        CaptureError, match="the parameter was made by Pyro of a tensor that depends on a sample"
    ) as raised:
        sgc.compile(model, guide, backend="eager")()
    assert raised.value.site == "p"
    assert raised.value.source is not None
    assert "clear_param_store()" in raised.value.remedy
    assert pyro.get_param_store()._params["p"] is tensor
