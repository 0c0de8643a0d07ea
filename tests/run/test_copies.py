"""Copies and pickles of a loss module: they compute the same, compile for themselves, and share no module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import sgc
import sgc.infer

X = torch.tensor([0.1, 0.9, -0.4])


class Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](1, 1)

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.net(x[:, None])[:, 0] * z, 1.0), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.3))

    def forward(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.loc, 1.0))


def guide(x: Tensor) -> None:
    """One whose parameter is in Pyro's store."""
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def loss_of(module: Any) -> float:
    pyro.set_rng_seed(3)
    loss: Tensor = module(X)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, copy.copy])
@pytest.mark.parametrize(
    "make",
    [
        lambda model, guide: sgc.compile(model, guide, backend="eager"),
        lambda model, guide: sgc.infer.TraceGraph_ELBO(backend="eager")(model, guide),
    ],
)
def test_a_copy(make: Callable[..., Any], copied: Callable[[Any], Any], called: bool) -> None:
    module = make(Model(), Guide())
    loss = loss_of(module) if called else None
    other = copied(module)
    assert other.specializations == ()
    assert list(other.state_dict()) == list(module.state_dict())
    assert loss_of(other) == (loss if called else loss_of(module))
    shared = copied is copy.copy
    assert (other.model.net.weight is module.model.net.weight) == shared
    if not shared:
        with torch.no_grad():
            other.model.net.weight.add_(1.0)
        assert loss_of(other) != loss_of(module)
        assert loss_of(module) == (loss if called else loss_of(module))


def test_what_is_in_the_store_is_shared() -> None:
    module = sgc.compile(Model(), guide, backend="eager")
    loss = loss_of(module)
    other = copy.deepcopy(nn.ModuleList([module]))[0]
    assert dict(other.param_store.named_parameters()) == {}  # until it is called
    assert loss_of(other) == loss
    assert next(other.param_store.parameters()) is next(module.param_store.parameters())
    assert len(module.specializations) == len(other.specializations) == 1
