"""SVI, Pyro's and sgc's, trains the same parameters along the same path with sgc's loss as with Pyro's."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

import sgc.infer
from tests.programs import local_switches

DATA = torch.tensor([0.3, -1.2, 0.8])
DECAYING = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}}
IMPLEMENTATIONS = [
    pytest.param(pyro.infer.SVI, sgc.infer.TraceGraph_ELBO, id="Pyro's SVI"),
    pytest.param(sgc.infer.SVI, sgc.infer.TraceGraph_ELBO, id="sgc's SVI"),
    pytest.param(sgc.infer.SVI, sgc.infer.JitTraceGraph_ELBO, id="sgc's SVI and Jit"),
]


def train(svi: Any, steps: int, *args: Any) -> list[float]:
    pyro.set_rng_seed(11)
    return [svi.step(*args) for _ in range(steps)]


def values() -> dict[str, Tensor]:
    store = pyro.get_param_store()
    return {name: store[name].detach().clone() for name in store if not name.startswith("__baseline")}


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
@pytest.mark.parametrize("infer", [{}, DECAYING], ids=["no baseline", "decaying average"])
def test_a_run_of_training_is_pyros(svi: Any, elbo: Any, infer: dict[str, Any]) -> None:
    program = local_switches(infer)
    theirs = train(pyro.infer.SVI(*program, pyro.optim.Adam({"lr": 0.03}), pyro.infer.TraceGraph_ELBO()), 20, DATA)
    their_values = values()
    pyro.clear_param_store()
    ours = train(svi(*program, pyro.optim.Adam({"lr": 0.03}), elbo()), 20, DATA)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, value in values().items():
        torch.testing.assert_close(value, their_values[name], rtol=1e-4, atol=1e-6)


def test_the_default_loss_is_sgcs() -> None:
    svi = sgc.infer.SVI(*local_switches(), pyro.optim.Adam({"lr": 0.1}))
    assert isinstance(svi.loss.__self__, sgc.infer.TraceGraph_ELBO)
    assert isinstance(svi.step(DATA), float)
    assert isinstance(svi.evaluate_loss(DATA), float)


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_one_optimizer_for_each_parameter_none_for_an_average(svi: Any, elbo: Any) -> None:
    asked: list[str] = []

    def options(name: str) -> dict[str, float]:
        asked.append(name)
        return {"lr": 0.0 if name == "q" else 0.1}

    optimizer = pyro.optim.Adam(options)
    trained = svi(*local_switches(DECAYING), optimizer, elbo())
    train(trained, 5, DATA)
    frozen = pyro.param("q").item()
    train(trained, 5, DATA)
    assert sorted(asked) == ["loc_loc", "q"]
    assert len(optimizer.optim_objs) == 2
    assert pyro.param("q").item() == frozen
    (state,) = [o.state for p, o in optimizer.optim_objs.items() if p is pyro.get_param_store()._params["loc_loc"]]
    assert next(iter(state.values()))["step"] == 10


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_parameters_that_reach_no_cost_are_seen_too(svi: Any, elbo: Any) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.param("idle", torch.tensor(1.0))
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    optimizer = pyro.optim.Adam({"lr": 0.1})
    train(svi(model, guide, optimizer, elbo()), 2)
    assert set(optimizer.get_state()) == {"idle", "loc"}
    assert pyro.param("idle").item() == 1.0


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_module_parameters_are_seen(svi: Any, elbo: Any) -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    encoder = nn.Linear(3, 1)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    optimizer = pyro.optim.ClippedAdam({"lr": 0.1})
    before = encoder.weight.clone()
    train(svi(Model(), guide, optimizer, elbo()), 3, DATA)
    assert set(optimizer.get_state()) == {
        "decoder$$$weight",
        "decoder$$$bias",
        "encoder$$$weight",
        "encoder$$$bias",
    }
    assert not torch.equal(encoder.weight, before)


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_schedulers(svi: Any, elbo: Any) -> None:
    scheduler = pyro.optim.StepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.1, "step_size": 1}
    )
    trained = svi(*local_switches(), scheduler, elbo())
    rates = []
    for _ in range(3):
        trained.step(DATA)
        rates.append({group["lr"] for o in scheduler.optim_objs.values() for group in o.optimizer.param_groups})
        scheduler.step()
    assert [next(iter(rate)) for rate in rates] == pytest.approx([0.01, 0.001, 0.0001])
    assert all(len(rate) == 1 for rate in rates)


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_gradients_are_zero_after_a_step_and_lie_on_the_unconstrained_tensors(svi: Any, elbo: Any) -> None:
    program, loss = local_switches(), elbo()
    loss.loss_and_grads(*program, DATA)
    assert all(p.grad is not None and p.grad.abs() > 0 for p in pyro.get_param_store()._params.values())
    svi(*program, pyro.optim.Adam({"lr": 0.1}), loss).step(DATA)
    assert all(p.grad is None or p.grad.abs() == 0 for p in pyro.get_param_store()._params.values())


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_training_goes_on_from_a_cleared_store(svi: Any, elbo: Any) -> None:
    trained = svi(*local_switches(), pyro.optim.Adam({"lr": 0.1}), elbo())
    first = train(trained, 3, DATA)
    pyro.clear_param_store()
    trained.optim = pyro.optim.Adam({"lr": 0.1})
    assert train(trained, 3, DATA) == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(("svi", "elbo"), IMPLEMENTATIONS)
def test_parameters_changed_behind_its_back_are_used(svi: Any, elbo: Any) -> None:
    trained = svi(*local_switches(), pyro.optim.Adam({"lr": 0.0}), elbo())
    before = train(trained, 1, DATA)
    pyro.get_param_store()["loc_loc"] = torch.tensor(5.0)
    assert train(trained, 1, DATA) != before


def test_outer_traces_see_parameters_and_no_fake_tensor() -> None:
    model, guide = local_switches(DECAYING)
    elbo = sgc.infer.TraceGraph_ELBO()
    for _ in range(2):
        with pyro.poutine.trace() as observed:
            elbo.loss_and_grads(model, guide, DATA)
        assert {name: site["type"] for name, site in observed.trace.nodes.items()} == {"loc_loc": "param", "q": "param"}
        for name, site in observed.trace.nodes.items():
            assert site["value"].unconstrained() is pyro.get_param_store()._params[name]


def test_handlers_around_a_step_act_on_it() -> None:
    model, guide = local_switches()
    losses: dict[str, list[float]] = {"pyro": [], "sgc": []}
    elbos = {"pyro": pyro.infer.TraceGraph_ELBO(), "sgc": sgc.infer.TraceGraph_ELBO()}
    half = pyro.poutine.scale(scale=0.5)
    for name, elbo in elbos.items():
        for handler in (None, half, None, half):
            pyro.set_rng_seed(0)
            if handler is None:
                losses[name].append(elbo.loss(model, guide, DATA))
            else:
                with handler:
                    losses[name].append(elbo.loss(model, guide, DATA))
    assert losses["sgc"] == pytest.approx(losses["pyro"], rel=1e-6)
    assert losses["sgc"][0] == pytest.approx(2 * losses["sgc"][1], rel=1e-5)
    assert len(elbos["sgc"].compiled(model, guide).specializations) == 2


def test_lifted_parameters_are_no_parameters() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)))
        pyro.sample("loc", dist.Delta(torch.tensor(0.1)))

    lifted = pyro.poutine.lift(model, prior={"loc": dist.Normal(0.0, 1.0)})
    optimizer = pyro.optim.Adam({"lr": 0.1})
    train(sgc.infer.SVI(lifted, guide, optimizer), 2)
    assert set(optimizer.get_state()) == {"scale"}
