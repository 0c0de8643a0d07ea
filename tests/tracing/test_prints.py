"""A first call runs a program several times, and prints what Pyro's one call prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor

import sgc


def model(x: Tensor) -> None:
    print("model", x.shape)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    print("sampled", z.shape)
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of_random_numbers(x: Tensor) -> None:
    print("guide", x.shape)
    pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 1.0))


def of_numbers(x: Tensor) -> None:
    print("guide", x.shape)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))


GUIDES: dict[str, Callable[[], Any]] = {
    "AutoNormal": lambda: AutoNormal(model),  # runs the model once to make its parameters
    "AutoDiagonalNormal": lambda: AutoDiagonalNormal(model),
    "random numbers": lambda: of_random_numbers,
    "numbers": lambda: of_numbers,
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_first_call_prints_what_pyro_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for elbo in (pyro.infer.Trace_ELBO(), sgc.infer.Trace_ELBO(backend="eager")):
        pyro.clear_param_store()
        elbo.loss(model, GUIDES[name](), torch.tensor(0.3))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].count("sampled") >= 1
