"""Parameters that are moved to another dtype in the midst of training: the optimizer's state follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch

import sgc
from tests.training.programs import DATA, GAUSSIAN, adam, fresh

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "a factory": lambda: adam,
    "momentum": lambda: lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Pyro's": lambda: pyro.optim.Adam({"lr": 0.02}),
    "Pyro's own": lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99}),
    "a scheduler": lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {}, "gamma": 0.9}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_to_another_dtype(name: str, uncompiled: None) -> None:
    svi = fresh(OPTIMIZERS[name](), program=GAUSSIAN)
    for _ in range(3):
        svi.step(DATA)
    before = {n: p.detach().clone() for n, p in svi.loss_module.named_parameters()}
    state = svi.state_dict()
    svi.loss_module.double()
    assert all(torch.equal(p, before[n].double()) for n, p in svi.loss_module.named_parameters())
    moved = [svi.step(DATA.double()) for _ in range(4)]
    svi.loss_module.float()
    svi.load_state_dict(state)
    stayed = [svi.step(DATA) for _ in range(4)]
    assert moved == pytest.approx(stayed, rel=1e-4)  # with the momentum that there was
    assert {p.dtype for p in svi.loss_module.parameters()} == {torch.float32}


@pytest.mark.parametrize("steps", [1, 3])
def test_runs_go_on_with_moved_parameters(steps: int, uncompiled: None) -> None:
    svi = fresh(adam, program=GAUSSIAN)
    svi.run(steps, DATA)
    svi.loss_module.double()
    assert svi.run(3, DATA.double()).losses.dtype is torch.float64
    assert isinstance(svi, sgc.SVI)
