"""Runs over minibatches of several shapes, each with averages of its own, go on to the last bit from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import sgc
from sgc.runtime.loss_module import LossModule
from tests.training.programs import adam, fresh, make_svi, values

DECAYING = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}}
BATCHES = [torch.arange(4.0), torch.zeros(4), torch.tensor([1.0, -1.0])]


def model(data: Tensor) -> None:
    with pyro.plate("rows", len(data)):
        z = pyro.sample("net.z", dist.Bernoulli(0.5))
        w = pyro.sample("net_z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z - w, 1.0), obs=data)


def guide(data: Tensor) -> None:
    """Two sites whose names differ in a dot alone."""
    q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(data)):
        pyro.sample("net.z", dist.Bernoulli(q), infer=DECAYING)
        pyro.sample("net_z", dist.Bernoulli(1 - q), infer=DECAYING)


PROGRAM = model, guide


def held() -> dict[str, Any]:
    """What Pyro's store holds, by name."""
    return {name: values()[name].tolist() for name in sorted(values())}


def averages() -> dict[str, Any]:
    return {name: value for name, value in held().items() if name.startswith("__baseline")}


def go_on(svi: sgc.SVI) -> list[float]:
    losses: list[float] = svi.run(BATCHES, epochs=2).losses.tolist()
    return losses


@pytest.mark.parametrize(
    ("make", "backend"),
    [(lambda: adam, "inductor"), (lambda: pyro.optim.Adam({"lr": 0.03}), "eager")],
    ids=["torch's", "Pyro's"],
)
@pytest.mark.parametrize(
    "first", [BATCHES[:1], BATCHES[-1:], BATCHES[::-1], [torch.ones(3)]], ids=["long", "short", "both", "another"]
)
def test_whatever_shape_the_resuming_process_meets_first(
    first: list[Tensor], make: Callable[[], Any], backend: str, uncompiled: None
) -> None:
    svi = fresh(make(), program=PROGRAM, backend=backend)
    go_on(svi)
    state = svi.state_dict()
    losses, expected = go_on(svi), held()
    assert len(averages()) == 4
    pyro.clear_param_store()
    resumed = make_svi(make(), program=PROGRAM, backend=backend)
    for data in first:
        resumed.initialize(data)
    resumed.load_state_dict(state)
    assert go_on(resumed) == losses
    assert held() == expected


def test_averages_of_shapes_to_come_are_saved_again(uncompiled: None) -> None:
    svi = fresh(program=PROGRAM)
    go_on(svi)
    state = svi.state_dict()
    losses = go_on(svi)
    for _ in range(2):
        pyro.clear_param_store()
        resumed = make_svi(adam, program=PROGRAM).initialize(BATCHES[0])
        resumed.load_state_dict(state)
        state = resumed.state_dict()
    assert go_on(resumed) == losses


def test_shapes_met_after_the_checkpoint_begin_anew(uncompiled: None) -> None:
    svi = fresh(program=PROGRAM)
    svi.run(BATCHES[:2])
    state = svi.state_dict()
    losses, expected = go_on(svi), held()
    svi.load_state_dict(state)
    assert go_on(svi) == losses
    assert held() == expected


def test_a_loss_module_by_itself_loads_them_too() -> None:
    def train(module: LossModule) -> Any:
        found = []
        pyro.set_rng_seed(3)
        for data in BATCHES:
            module(data).backward()
            found.append(module(data).item())
        return found, averages()

    module = sgc.compile(model, guide, backend="eager")
    train(module)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    expected = train(module)
    pyro.clear_param_store()
    other = sgc.compile(model, guide, backend="eager").initialize(BATCHES[-1])
    other.load_state_dict(state)
    assert train(other) == expected
    with pytest.raises(RuntimeError, match="Unexpected key.*baselines.of_nobody"):
        other.load_state_dict({**state, "baselines.of_nobody": torch.zeros(3)})
    less = {name: value for name, value in state.items() if "net_z" not in name}
    with pytest.raises(RuntimeError, match="Missing key.*baselines.net_z"):
        other.load_state_dict(less)


def test_the_optimizer_lets_go_of_parameters_that_were_cleared(uncompiled: None) -> None:
    svi = fresh(program=PROGRAM)
    go_on(svi)
    pyro.clear_param_store()
    go_on(svi)
    state = svi.state_dict()
    losses = go_on(svi)
    pyro.clear_param_store()
    resumed = make_svi(adam, program=PROGRAM).initialize(BATCHES[0])
    resumed.load_state_dict(state)
    assert go_on(resumed) == losses


def test_what_the_store_holds_is_saved_whoever_put_it_there(uncompiled: None) -> None:
    svi = fresh(program=PROGRAM)
    go_on(svi)
    pyro.get_param_store()["q"] = torch.tensor(0.9)
    assert svi.state_dict()["loss_module"]["param_store.q"].item() == pytest.approx(torch.tensor(0.9).logit().item())


class Counting(torch.nn.Module):
    """A network with a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.0))
        self.notes = ["made"]

    def get_extra_state(self) -> Any:
        return self.notes

    def set_extra_state(self, state: Any) -> None:
        self.notes = list(state)

    def forward(self, data: Tensor) -> None:
        pyro.sample("x", dist.Normal(self.shift, 1.0).expand([len(data)]).to_event(1), obs=data)


def test_state_of_a_module_that_is_no_tensor_comes_along(uncompiled: None) -> None:
    network = Counting()
    svi = fresh(program=(network, lambda data: None))
    svi.run(2, BATCHES[0])
    network.notes.append("trained")
    state = svi.state_dict()
    network.notes.append("later")
    svi.load_state_dict(state)
    assert network.notes == ["made", "trained"]


def test_what_lbfgs_remembers_is_of_each_parameter(uncompiled: None) -> None:
    """Its memory is one vector of all parameters, whose order is that of the captures."""

    def guide(data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param(f"of {len(data)}", torch.tensor(0.5)), 0.3))

    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(loc, 0.5), obs=data)

    def lbfgs(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.05, max_iter=2)

    svi = fresh(lbfgs, program=(model, guide), backend="eager").initialize(BATCHES[0]).initialize(BATCHES[-1])
    svi.run(BATCHES)
    state = svi.state_dict()
    losses = go_on(svi)
    pyro.clear_param_store()
    resumed = make_svi(lbfgs, program=(model, guide), backend="eager")
    resumed.initialize(BATCHES[-1]).initialize(BATCHES[0])
    resumed.load_state_dict(state)
    assert go_on(resumed) == losses


@pytest.mark.inductor
def test_whatever_shape_comes_first_when_inductor_compiles() -> None:
    svi = fresh(program=PROGRAM)
    go_on(svi)
    state = svi.state_dict()
    losses, expected = go_on(svi), held()
    pyro.clear_param_store()
    resumed = make_svi(adam, program=PROGRAM).initialize(BATCHES[-1])
    go_on(resumed)  # compiled for averages under other names
    resumed.load_state_dict(state)
    assert go_on(resumed) == losses
    assert held() == expected
