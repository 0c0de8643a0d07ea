"""A compiled step moves parameters, averages and optimizer state as the optimizer does in Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.optim import dct_adam
from torch import Tensor

import sgc
from sgc.emit.train_step import emit_step
from sgc.errors import ArgumentError, OptimizerError, StandInWarning
from tests.training.programs import DATA, adam, fresh, is_compiled, make_svi, train, values

STEPS = 7

Make = Callable[[], Any]

TRACED: dict[str, Make] = {
    "SGD": lambda: lambda p: torch.optim.SGD(p, lr=0.03),
    "SGD, momentum": lambda: lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda: adam,
    "Adam, foreach": lambda: lambda p: torch.optim.Adam(p, lr=0.03, foreach=True),
    "Adam, fused": lambda: lambda p: torch.optim.Adam(p, lr=0.03, fused=True),
    "Adam, amsgrad": lambda: lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True, weight_decay=0.1),
    "Adam, lr a tensor": lambda: lambda p: torch.optim.Adam(p, lr=torch.tensor(0.03)),
    "the class itself": lambda: torch.optim.Adam,
    **{
        name: (lambda name=name: getattr(pyro.optim, name)({"lr": 0.03}))
        for name in ("AdamW", "NAdam", "RAdam", "Adamax", "ASGD", "Adagrad", "Adadelta", "RMSprop", "Rprop", "DCTAdam")
    },
    "Pyro's Adam": lambda: pyro.optim.Adam({"lr": 0.03}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.8, "clip_norm": 0.4}),
    "clip_norm": lambda: pyro.optim.Adam({"lr": 0.03}, {"clip_norm": 0.1}),
    "clip_value": lambda: pyro.optim.SGD({"lr": 0.03}, {"clip_value": 0.1}),
    "options by name": lambda: pyro.optim.SGD(lambda name: {"lr": 0.1 if name == "q" else 0.01}),
}
UNTRACED: dict[str, tuple[Make, str]] = {
    "Adafactor": (lambda: pyro.optim.Adafactor({"lr": 0.03}), "Adafactor cannot be traced"),
    "AdagradRMSProp": (lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}), "branches on numbers that change"),
    "LBFGS": (lambda: lambda p: torch.optim.LBFGS(p, lr=0.03, max_iter=2), "LBFGS evaluates the loss itself"),
}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", TRACED.values(), ids=TRACED.keys())
def test_the_numbers_are_those_of_the_optimizer(make: Make, uncompiled: None) -> None:
    losses, expected, _ = train(make(), STEPS, "eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, found, svi = train(make(), STEPS, "inductor")
    assert is_compiled(svi)
    assert ours == pytest.approx(losses, rel=1e-5)
    close(found, expected)


@pytest.mark.parametrize("name", ["ClippedAdam", "DCTAdam", "Pyro's Adam", "Adam"])
def test_a_step_is_traced_once(name: str, uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the optimizer schedules its own rate, which is an input then."""
    traces: list[object] = []

    def counted(*args: Any) -> Any:
        traces.append(args)
        return emit_step(*args)

    monkeypatch.setattr("sgc.runtime.specializing.compiler.emit_step", counted)
    *_, svi = train(TRACED[name](), STEPS, "inductor")
    assert is_compiled(svi)
    assert len(traces) == 1


@pytest.mark.parametrize(("make", "text"), UNTRACED.values(), ids=UNTRACED.keys())
def test_what_cannot_be_traced_runs_in_python_and_says_so(make: Make, text: str, uncompiled: None) -> None:
    losses, expected, _ = train(make(), STEPS, "eager")
    with pytest.warns(StandInWarning, match=text) as warned:
        ours, found, svi = train(make(), STEPS, "inductor")
    assert len([w for w in warned if w.category is StandInWarning]) == 1
    assert not is_compiled(svi)
    assert ours == pytest.approx(losses, rel=1e-5)
    close(found, expected)


class Sign(torch.optim.Optimizer):
    """A user's own: its Python counts, which a traced step would do once."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter -= 0.1 / self.count * parameter.grad.sign()


def test_a_users_own_optimizer_runs_in_python(uncompiled: None) -> None:
    _, expected, _ = train(Sign, STEPS, "eager")
    with pytest.warns(StandInWarning, match="Sign is neither torch's nor Pyro's"):
        _, found, svi = train(Sign, STEPS, "inductor")
    close(found, expected)
    assert svi.stepper.optimizing.optimizer.count == STEPS


def test_hooks_are_run(uncompiled: None) -> None:
    seen = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = adam(parameters)
        optimizer.register_step_pre_hook(lambda *_: seen.append(1))
        return optimizer

    with pytest.warns(StandInWarning, match="the optimizer has hooks"):
        train(make, 3, "inductor")
    assert len(seen) == 3


def test_hooks_on_gradients_are_run(uncompiled: None) -> None:
    svi = make_svi(adam)
    svi.step(DATA)
    assert is_compiled(svi)
    norms: list[float] = []
    handle = pyro.param("loc_loc").register_hook(lambda gradient: norms.append(gradient.norm().item()))
    with pytest.warns(StandInWarning, match="hooks on its gradient"):
        svi.step(DATA)
    assert len(norms) == 1
    handle.remove()
    assert is_compiled(svi)


def test_an_instance_trains_what_it_was_given(uncompiled: None) -> None:
    svi = make_svi(adam).initialize(DATA)
    store = pyro.get_param_store()
    svi = make_svi(torch.optim.SGD([store._params["q"]], lr=0.1), program=(svi.model, svi.guide))
    before = values()
    with pytest.warns(StandInWarning, match=r"loc_loc receives a gradient and no optimizer has it.*requires_grad_"):
        for _ in range(3):
            svi.step(DATA)
    store._params["loc_loc"].requires_grad_(False)
    svi.step(DATA)
    svi.step(DATA)
    assert is_compiled(svi)
    assert values()["q"] != before["q"]
    assert values()["loc_loc"] == before["loc_loc"]


def schedule(kind: str) -> Any:
    optimizers: list[torch.optim.Optimizer] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.Adam(parameters, lr=0.1))
        return optimizers[-1]

    def between(svi: sgc.SVI) -> None:
        if len(optimizers) == 1:
            scheduler = {
                "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
                "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
            }[kind](optimizers[0])
            optimizers.append(scheduler)  # type: ignore[arg-type]
        else:
            optimizers[1].step()

    return make, between


@pytest.mark.parametrize("kind", ["exponential", "one cycle"])
def test_schedulers_need_no_new_compilation_at_each_step(kind: str, uncompiled: None) -> None:
    """OneCycleLR moves Adam's betas too; from the second step on it is known that they move."""
    losses, expected, _ = train(*_with(schedule(kind), "eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a scheduler whose optimizer seems not to step
        ours, found, svi = train(*_with(schedule(kind), "inductor"))
    assert ours == pytest.approx(losses, rel=1e-5)
    close(found, expected)
    assert svi.stepper.compiled.built <= 2


def _with(scheduled: Any, backend: str) -> Any:
    make, between = scheduled
    return make, STEPS, backend, between


def test_a_rate_set_by_hand_takes_effect(uncompiled: None) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.SGD(parameters, lr=0.1))
        return optimizers[-1]

    svi = make_svi(make)
    for _ in range(3):
        svi.step(DATA)
    optimizers[0].param_groups[0]["lr"] = 0.0
    before = values()
    svi.step(DATA)
    assert values()["q"] == before["q"]
    assert svi.stepper.compiled.built == 1


def test_an_option_set_by_hand_takes_effect(uncompiled: None) -> None:
    def between(svi: sgc.SVI) -> None:
        svi.stepper.optimizing.optimizer.param_groups[0]["weight_decay"] = 0.5

    _, expected, _ = train(adam, STEPS, "eager", between)
    _, found, _ = train(adam, STEPS, "inductor", between)
    close(found, expected)


def test_the_state_is_the_optimizers_own(uncompiled: None) -> None:
    """``state_dict`` and ``load_state_dict`` of the optimizer see what the compiled step does, and the reverse."""
    _, _, eager = train(adam, STEPS, "eager")
    theirs = eager.stepper.optimizing.optimizer.state_dict()
    _, _, compiled = train(adam, STEPS, "inductor")  # which clears the store that the parameters of both are in
    ours = compiled.stepper.optimizing.optimizer
    for one, other in zip(ours.state_dict()["state"].values(), theirs["state"].values(), strict=True):
        assert one["step"] == other["step"] == STEPS
        torch.testing.assert_close(one["exp_avg"], other["exp_avg"])
    fresh = torch.optim.Adam([p for g in ours.param_groups for p in g["params"]], lr=0.03)
    saved = fresh.state_dict()
    ours.load_state_dict(saved)
    compiled.step(DATA)  # makes its state anew
    compiled.step(DATA)
    assert is_compiled(compiled)
    assert {state["step"].item() for state in ours.state.values()} == {2.0}


def test_parameters_that_appear_later_are_trained(uncompiled: None) -> None:
    """``clear_param_store`` makes new tensors; a factory's optimizer gets them."""
    svi = make_svi(adam)
    for _ in range(3):
        svi.step(DATA)
    pyro.clear_param_store()
    svi.step(DATA)
    before = values()
    for _ in range(2):
        svi.step(DATA)
    assert is_compiled(svi)
    assert values()["q"] != before["q"]


def test_no_gradient_is_left(uncompiled: None) -> None:
    svi = make_svi(adam)
    for _ in range(3):
        svi.step(DATA)
        assert all(p.grad is None for p in svi.loss_module.parameters())


def test_a_factory_must_make_an_optimizer() -> None:
    with pytest.raises(OptimizerError, match="returned a list"):
        make_svi(list).step(DATA)


def test_what_is_no_optimizer_is_refused_as_in_pyro() -> None:
    with pytest.raises(ValueError, match=r"Optimizer should be an instance of pyro\.optim\.PyroOptim"):
        make_svi("adam")


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["Adam", "ClippedAdam", "clip_norm", "RAdam"])
def test_the_numbers_are_the_same_when_inductor_compiles(name: str) -> None:
    losses, expected, _ = train(TRACED[name](), STEPS, "eager")
    ours, found, svi = train(TRACED[name](), STEPS, "inductor")
    assert is_compiled(svi)
    assert ours == pytest.approx(losses, rel=1e-5)
    close(found, expected)


def rows_model(data: Tensor) -> None:
    with pyro.plate("rows", len(data), subsample_size=2) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data[rows])


def rows_guide(data: Tensor) -> None:
    with pyro.plate("rows", len(data), subsample_size=2):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(len(data)), event_dim=0), 0.5))


@pytest.mark.parametrize("made_by", ["Pyro", "torch"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_steps_of_the_rows_that_were_drawn_are_refused(backend: str, made_by: str, uncompiled: None) -> None:
    """Pyro notes them on the parameter whenever the program runs in Python, which a compiled one does not."""
    options = {"lr": 0.1, "subsample_aware": True}
    optim = pyro.optim.DCTAdam(options) if made_by == "Pyro" else lambda p: dct_adam.DCTAdam(p, **options)
    svi = fresh(optim, backend=backend, program=(rows_model, rows_guide))
    with pytest.raises(ArgumentError, match="asks which rows of a parameter were drawn"):
        svi.step(DATA)
    assert not pyro.param("loc").any()
    for rows in pyro.get_param_store()._params["loc"]._pyro_subsample.values():
        assert type(rows) is Tensor  # none of the capture's


def test_a_transformed_parameter_is_stepped_in_python(uncompiled: None) -> None:
    def trained(backend: str) -> Tensor:
        optim = pyro.optim.DCTAdam({"lr": 0.1})
        svi = fresh(optim, backend=backend, program=(rows_model, rows_guide)).initialize(DATA)
        pyro.get_param_store()._params["loc"]._pyro_dct_dim = -1
        for _ in range(3):
            svi.step(DATA)
        return pyro.param("loc").detach()

    expected = trained("eager")
    with pytest.warns(StandInWarning, match="DCTAdam transforms a parameter"):
        torch.testing.assert_close(trained("inductor"), expected)
