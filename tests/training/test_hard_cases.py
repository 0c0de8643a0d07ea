"""What users do between steps, and odd parameters, against eager Pyro or torch's optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import lr_scheduler

import sgc.infer
from tests.training.programs import DATA, is_compiled, make_svi

Program = tuple[Callable[..., Any], Callable[..., Any]]


def model(data: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(loc, 0.5), obs=data)


def guide(data: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.0)), scale))


def of(*parameters: Tensor) -> Program:
    """The model, and a guide with a mean and a log scale."""
    mean, log_scale = parameters
    return model, lambda data: pyro.sample("loc", dist.Normal(mean, log_scale.exp()))


def two() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(-0.7))]


def by_torch(program: Program, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], float]:
    """A training step as one would write it by hand, with Pyro's ELBO."""
    loss_and_grads = pyro.infer.TraceGraph_ELBO().loss_and_grads

    def step(data: Tensor) -> float:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        loss: float = loss_and_grads(*program, data)
        optimizer.step()
        return loss

    return step


# -- what is done to the optimizer between steps, with the parameters at hand

Between = Callable[[int, torch.optim.Optimizer, list[nn.Parameter]], None]


def decay(i: int, optimizer: torch.optim.Optimizer, _: Any) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.1 if i >= 4 else 0


def tensor_rate(i: int, optimizer: torch.optim.Optimizer, _: Any) -> None:
    group = optimizer.param_groups[0]
    if i == 3:
        group["lr"].mul_(0.1)
    elif i == 4:
        group["lr"] = group["lr"].clone()  # an equal one
    elif i == 5:
        group["lr"].mul_(5.0)
    elif i == 6:
        group["lr"] = 0.2


def state_by_hand(i: int, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    if i == 2:
        optimizer.state.clear()
    elif i == 4:
        optimizer.state[parameters[0]] = {}
    elif i == 5:
        optimizer.state[parameters[1]]["exp_avg"] = torch.tensor(7.0)
    elif i == 6:
        optimizer.load_state_dict(optimizer.state_dict())


def groups_by_hand(i: int, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    if i == 2:
        second = optimizer.param_groups[0]["params"].pop()
        optimizer.add_param_group({"params": [second], "lr": 0.2, "betas": (0.5, 0.6)})
    elif i == 5:
        del optimizer.param_groups[0]
        parameters[0].requires_grad_(False)  # else its gradient would be nobody's


def direction(i: int, optimizer: torch.optim.Optimizer, _: Any) -> None:
    optimizer.param_groups[0]["maximize"] = i >= 4


def freeze(i: int, _: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    parameters[1].requires_grad_(not 2 <= i < 5)


CHANGES: dict[str, tuple[dict[str, Any], Between]] = {
    "weight decay": ({}, decay),
    "tensor rate": ({"lr": torch.tensor(0.1)}, tensor_rate),
    "state": ({}, state_by_hand),
    "groups": ({}, groups_by_hand),
    "direction": ({"amsgrad": True}, direction),
    "frozen": ({}, freeze),
    "fused, frozen": ({"fused": True}, freeze),
}


def compare(
    program: Callable[..., Program],
    parameters: Callable[[], list[nn.Parameter]],
    make: Callable[[Any], torch.optim.Optimizer],
    change: Between = lambda *_: None,
) -> None:
    """Losses and parameters of compiled steps and of steps by hand, for the same random numbers."""
    results = []
    for compiled in (False, True):
        pyro.set_rng_seed(1)
        own = parameters()
        optimizer = make(own)
        svi = make_svi(optimizer, program=program(*own))
        step = svi.step if compiled else by_torch(program(*own), optimizer)
        losses = []
        for i in range(9):
            losses.append(step(DATA))
            change(i, optimizer, own)
        results.append((losses, own))
    assert is_compiled(svi)
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_done_to_an_optimizer_takes_effect(name: str, uncompiled: None) -> None:
    options, change = CHANGES[name]

    def make(parameters: Any) -> torch.optim.Optimizer:
        own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in options.items()}
        return torch.optim.Adam(parameters, **{"lr": 0.05, **own})

    compare(of, two, make, change)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_torchs_schedulers(name: str, rate: float | Tensor, uncompiled: None) -> None:
    made: dict[int, Any] = {}

    def change(i: int, optimizer: torch.optim.Optimizer, _: Any) -> None:
        if i == 0:
            made[id(optimizer)] = SCHEDULERS[name](optimizer)
        else:
            made[id(optimizer)].step(*[1.0] * (name == "plateau"))

    compare(of, two, lambda p: torch.optim.Adam(p, lr=rate.clone() if isinstance(rate, Tensor) else rate), change)


def test_two_svis_share_an_optimizer_and_a_parameter(uncompiled: None) -> None:
    results = []
    for compiled in (False, True):
        pyro.set_rng_seed(1)
        parameters, loss = two(), sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch")
        optimizer = torch.optim.Adam(parameters, lr=0.05)
        programs = of(*parameters), of(parameters[0], torch.tensor(-1.0))
        steps = [sgc.SVI(*p, optimizer, loss).step if compiled else by_torch(p, optimizer) for p in programs]
        results.append(([steps[i % 3 % 2](DATA) for i in range(12)], [p.item() for p in parameters]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-5, abs=1e-6)


# -- parameters

PARAMETERS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]] = {
    "complex": (lambda: torch.ones(3, dtype=torch.complex64) * (1 + 1j), lambda p: (p * (1 + 2j)).real),
    "float64": (lambda: torch.ones(3, dtype=torch.float64), lambda p: p.float()),
    "transposed": (lambda: torch.arange(6.0).reshape(2, 3).t(), lambda p: p.sum(1)),
    "strided": (lambda: torch.arange(6.0)[::2], lambda p: p.sin()),
}


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"amsgrad": True}], ids=["SGD", "Adam"])
def test_odd_parameters(kind: str, options: dict[str, Any], uncompiled: None) -> None:
    start, mean = PARAMETERS[kind]
    make = torch.optim.SGD if "momentum" in options else torch.optim.Adam

    def odd_model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=data)

    def program(parameter: nn.Parameter) -> Program:
        return odd_model, lambda data: pyro.sample("loc", dist.Normal(mean(parameter), 0.3).to_event(1))

    compare(program, lambda: [nn.Parameter(start())], lambda p: make(p, lr=0.02, **options))


def test_pyros_store_and_optimizer_are_saved_loaded_and_written(uncompiled: None, tmp_path: Path) -> None:
    results = []
    for compiled in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        store, optimizer = pyro.get_param_store(), pyro.optim.Adam({"lr": 0.03})
        svi = pyro.infer.SVI(model, guide, optimizer, pyro.infer.TraceGraph_ELBO())
        svi = make_svi(optimizer, program=(model, guide)) if compiled else svi
        losses = [svi.step(DATA[: 3 - i % 3 // 2]) for i in range(9)]  # every third batch is smaller
        store.save(str(tmp_path / "store"))
        optimizer.save(str(tmp_path / "optimizer"))
        losses += [svi.step(DATA) for _ in range(4)]
        store.load(str(tmp_path / "store"))
        optimizer.load(str(tmp_path / "optimizer"))
        losses += [svi.step(DATA) for _ in range(4)]
        store["mean"] = torch.tensor(1.0)
        losses += [svi.step(DATA) for _ in range(4)]
        with poutine.scale(scale=0.1):
            losses.append(svi.step(DATA))
        results.append(losses)
    assert results[1] == pytest.approx(results[0], rel=1e-5)
