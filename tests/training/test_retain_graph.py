"""``retain_graph`` of an ELBO keeps what arguments were computed with, in the steps of ``sgc.SVI`` too."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.errors import StandInWarning
from tests.training.param_store_operations import DATA, guide, observe


def model(x: Tensor) -> None:
    observe(x, pyro.param("w", torch.tensor(0.7)) * x[:, 1])


def trained(svi: type[pyro.infer.SVI], elbo: Any, optimizer: Any) -> tuple[list[float], float]:
    """The losses of three steps on one argument with a history, and the gradient that they leave in it."""
    pyro.clear_param_store()
    encoder = torch.tensor(0.5, requires_grad=True)
    x = DATA[0] * encoder.exp()
    stepping = svi(model, guide, optimizer, elbo)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StandInWarning)  # the optimizer runs in Python
        for seed in range(3):
            pyro.set_rng_seed(seed)
            losses.append(stepping.step(x))
    assert encoder.grad is not None
    return losses, encoder.grad.item()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_an_argument_may_be_used_again(backend: str) -> None:
    def elbo(retain_graph: bool | None) -> Any:
        return sgc.infer.TraceGraph_ELBO(backend=backend, retain_graph=retain_graph)

    adam = pyro.optim.Adam({"lr": 0.1})
    expected = trained(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO(retain_graph=True), adam)
    losses, gradient = trained(sgc.SVI, elbo(True), pyro.optim.Adam({"lr": 0.1}))
    assert losses == pytest.approx(expected[0], rel=1e-4)
    assert gradient == pytest.approx(expected[1], rel=1e-4)
    losses, gradient = trained(sgc.SVI, elbo(True), lambda parameters: torch.optim.Adam(parameters, lr=0.1))
    assert losses == pytest.approx(expected[0], rel=1e-4)
    assert gradient == pytest.approx(expected[1], rel=1e-4)
    with pytest.raises(RuntimeError, match="second time"):
        trained(sgc.SVI, elbo(None), pyro.optim.Adam({"lr": 0.1}))
