"""Python numbers and sizes that both change from call to call, and what is computed of one with the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc
from tests.side_by_side import side_by_side

Number = Callable[[Tensor, Any], Any]

COMPUTED: dict[str, Number] = {
    "a product": lambda data, beta: beta * len(data),
    "a product, the size first": lambda data, beta: len(data) * beta,
    "a quotient": lambda data, beta: beta / data.shape[0],
    "a quotient, the size first": lambda data, beta: data.shape[0] / beta,
    "with a quotient of sizes": lambda data, beta: beta * (len(data) / 20),
    "a quotient of sizes first": lambda data, beta: len(data) / 20 * beta,
    "a sum": lambda data, beta: beta + len(data),
    "a difference": lambda data, beta: 40 - len(data) - beta,
    "a power": lambda data, beta: (1 + beta) ** (len(data) / 10),
    "a whole quotient": lambda data, beta: 1 + (100 * beta) // len(data),
    "a remainder": lambda data, beta: 1 + (100 * beta) % len(data),
    "an exponential": lambda data, beta: math.exp(-beta * len(data) / 10),
    "the smaller one": lambda data, beta: 0.1 + min(beta, 1.0) * len(data),
    "a number that is whole": lambda data, beta: int(beta * 10) * len(data) + 1,
}


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize("name", COMPUTED)
def test_of_numbers_and_sizes(name: str, backend: str) -> None:
    number = COMPUTED[name]

    def model(data: Tensor, beta: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=beta), pyro.plate("rows", len(data)):
            pyro.sample("x", dist.Normal(z * number(data, beta), 1.0 + number(data, beta)), obs=data)

    assert versions(model, backend) <= (3 if backend == "eager" else 6)


SCALED: dict[str, Callable[[Tensor, float], None]] = {}


def scaled(model: Callable[[Tensor, float], None]) -> Callable[[Tensor, float], None]:
    SCALED[model.__name__.replace("_", " ")] = model
    return model


def rows(data: Tensor, size: Any = None, **options: Any) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(data) if size is None else size, **options):
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)


@scaled
def a_scale_around_a_plate(data: Tensor, beta: float) -> None:
    with poutine.scale(scale=beta):
        rows(data)


@scaled
def a_scale_around_a_subsample(data: Tensor, beta: float) -> None:
    with poutine.scale(scale=beta):
        rows(data, 50, subsample_size=len(data))


@scaled
def a_scale_within_a_subsample(data: Tensor, beta: float) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 50, subsample_size=len(data)), poutine.scale(scale=beta):
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)


@scaled
def scales_of_both(data: Tensor, beta: float) -> None:
    with poutine.scale(scale=50 / len(data)), poutine.scale(scale=beta):
        rows(data)


@scaled
def a_scale_computed_of_both(data: Tensor, beta: float) -> None:
    with poutine.scale(scale=beta * 50 / len(data)):
        rows(data)


@pytest.mark.parametrize("name", SCALED)
def test_scales_by_numbers_and_sizes(name: str) -> None:
    assert versions(SCALED[name], "eager") <= 3


def guide(data: Tensor, beta: float) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))


def versions(model: Callable[..., Any], backend: str) -> int:
    """How many versions serve six calls, each of which gives Pyro's loss and gradient."""
    loss_module = sgc.compile(model, guide, backend=backend)
    for step, length in enumerate((3, 4, 7, 5, 9, 3)):
        data, beta = torch.linspace(-1, 1, length), 0.21 + 0.1 * step
        of_sgc, of_pyro = side_by_side(loss_module, model, guide, data, beta, seed=step, parameter="loc")
        torch.testing.assert_close(of_sgc, of_pyro)
    return len(loss_module.specializations)
