"""What several programs have under one name of Pyro's store is evaluated and trained as by eager Pyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import sgc
import sgc.infer
from sgc.errors import OptimizerError
from sgc.guards.base import Call
from tests.training.param_store_operations import (
    DATA,
    PROGRAMS,
    Make,
    Net,
    Regression,
    World,
    by_pyro,
    by_pyros_svi,
    by_sgc,
    continuous,
    first_difference,
    guide,
    observe,
    sequence,
)


@pytest.mark.parametrize("seed", range(8))
def test_random_sequences(seed: int) -> None:
    operations = sequence(seed, 12)
    assert first_difference(operations, by_sgc("eager"), shares_optimizer=seed % 2 == 1) is None


@pytest.mark.parametrize("seed", range(100, 102))
def test_random_sequences_by_pyros_svi(seed: int) -> None:
    assert first_difference(sequence(seed, 12), by_pyros_svi) is None


@pytest.mark.parametrize("seed", range(200, 202))
def test_random_sequences_of_compiled_steps(seed: int) -> None:
    operations = [*sequence(seed, 10), *[("step", program, 4) for program in (0, 1, 0)]]
    assert first_difference(operations, by_sgc("inductor")) is None


def test_there_are_as_many_programs() -> None:
    assert len(World(by_pyro).svis) == PROGRAMS


# -- two of a kind under one name


def registered(weight: float) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], nn.Module]:
    net = Net(weight)

    def model(x: Tensor) -> None:
        pyro.module("m", net)
        observe(x, net(x))

    return model, guide, net


def pyros_module(weight: float) -> Any:
    module = Regression(weight)
    return module, guide, module


def autoguide(weight: float) -> Any:
    of = AutoNormal(continuous, init_scale=weight)
    of(DATA[0])
    return continuous, of, of


def nested(weight: float) -> Any:
    class Outer(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.part = PyroModule[nn.Linear](2, 1)
            nn.init.constant_(self.part.weight, weight)
            nn.init.constant_(self.part.bias, 0.0)
            self.part.gain = PyroParam(torch.tensor(weight), constraint=constraints.positive)

        def forward(self, x: Tensor) -> None:
            observe(x, self.part.gain * self.part(x).squeeze(-1))

    module = Outer()
    return module, guide, module


def kept_by_an_object(weight: float) -> Any:
    class Kept:
        def __init__(self) -> None:
            self.weight = torch.full((2,), weight, requires_grad=True)

        def model(self, x: Tensor) -> None:
            pyro.param("weight", lambda: self.weight)
            observe(x, (x * self.weight).sum(-1))

        def parameters(self) -> list[Tensor]:
            return [self.weight]

    kept = Kept()
    return kept.model, guide, kept


def baseline_network(weight: float) -> Any:
    net = Net(weight)

    def of(x: Tensor) -> None:
        pyro.module("baseline", net)
        logit = pyro.param("logit", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            infer = {"baseline": {"nn_baseline": net, "nn_baseline_input": x}}
            pyro.sample("z", dist.Bernoulli(logits=logit.expand(len(x))), infer=infer)

    return lambda x: observe(x, x[:, 1]), of, net


KINDS = [registered, pyros_module, autoguide, nested, kept_by_an_object, baseline_network]


def lives(kind: Callable[[float], Any], make: Make, clears: bool) -> list[Any]:
    """The losses and parameters of two programs that take turns."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    programs = [kind(0.5), kind(1.5)]
    pyro.clear_param_store()
    first, second = (make(*parts, pyro.optim.Adam({"lr": 0.1})) for *parts, _ in programs)
    seen: list[Any] = []
    for svi, between in ((first, False), (second, clears), (first, False), (first, clears)):
        if between:
            pyro.clear_param_store()
        for seed in range(3):
            for parameter in (p for *_, module in programs for p in module.parameters()):
                parameter.grad = None
            pyro.set_rng_seed(seed)
            seen.append(svi.evaluate_loss(DATA[0]))
            pyro.set_rng_seed(seed)
            seen.append(svi.step(DATA[0]))
        seen += [p.detach().flatten().tolist() for *_, module in programs for p in module.parameters()]
    return seen


@pytest.mark.parametrize("clears", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_two_under_one_name(kind: Callable[[float], Any], clears: bool) -> None:
    expected = lives(kind, by_pyro, clears)
    for make in (by_sgc("eager"), by_pyros_svi):
        for mine, theirs in zip(lives(kind, make, clears), expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", [registered, pyros_module])
def test_two_under_one_name_in_compiled_steps(kind: Callable[[float], Any]) -> None:
    expected = lives(kind, by_pyro, clears=True)
    for mine, theirs in zip(lives(kind, by_sgc("inductor"), clears=True), expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


# -- what it costs


@pytest.mark.parametrize("kind", [registered, pyros_module, kept_by_an_object])
def test_a_cleared_store_costs_no_capture(kind: Callable[[float], Any]) -> None:
    *parts, _ = kind(0.5)
    svi = sgc.SVI(*parts, pyro.optim.Adam({"lr": 0.1}), sgc.infer.TraceGraph_ELBO(backend="eager"))
    for _ in range(3):
        pyro.clear_param_store()
        svi.step(DATA[0])
        svi.evaluate_loss(DATA[0])
    assert len(svi.loss_module.specializations) == 1


def test_two_that_take_turns_are_captured_twice_at_most() -> None:
    svis = [by_sgc("eager")(*parts, pyro.optim.Adam({"lr": 0.1})) for *parts, _ in (registered(0.5), registered(1.5))]
    for _ in range(4):
        for svi in svis:
            pyro.clear_param_store()
            svi.step(DATA[0])
            for one in svis:
                one.evaluate_loss(DATA[0])
    assert all(len(svi.loss_module.specializations) <= 2 for svi in svis)


def test_steps_of_a_registered_module_are_known_without_python() -> None:
    pyro.clear_param_store()
    *parts, net = registered(0.5)
    svi = by_sgc("inductor")(*parts, pyro.optim.Adam({"lr": 0.1}))
    for _ in range(6):
        svi.step(DATA[0])
    latest = svi.stepper.latest
    assert latest.inputs_of(Call((DATA[0],), {})) is not None
    pyro.get_param_store()["m$$$inner.bias"] = torch.tensor([7.0])
    assert latest.inputs_of(Call((DATA[0],), {})) is None
    assert latest.take((DATA[0],), {}) is None
    before = net.inner.bias.detach().clone()
    svi.step(DATA[0])
    assert torch.equal(before, net.inner.bias.detach())  # as in Pyro: the store has another one


def test_a_miss_says_what_is_another_tensor() -> None:
    pyro.clear_param_store()
    *parts, _ = registered(0.5)
    module = sgc.compile(*parts, backend="eager").initialize(DATA[0])
    assert "one tensor each in Pyro's store and elsewhere: m.inner.weight, m.inner.bias" in module.guards()
    pyro.get_param_store()["m$$$inner.bias"] = torch.tensor([7.0])
    module(DATA[0])
    assert "m.inner.bias of Pyro's store is another tensor than the program has" in str(module.misses())


# -- parameters that modules keep to themselves


def test_pyros_optimizer_does_not_train_what_modules_keep_to_themselves() -> None:
    with pyro.settings.context(module_local_params=True):
        module = Regression(0.5)
        svi = by_sgc("eager")(module, guide, pyro.optim.Adam({"lr": 0.1}))
        before = [p.detach().clone() for p in module.parameters()]
        text = r"with module_local_params=True that does not hold .*shift.*\n.*remedy: pass lambda parameters"
        for _ in range(2):
            with pytest.raises(OptimizerError, match=text):
                svi.step(DATA[0])
        assert all(map(torch.equal, before, module.parameters()))
        Regression(2.0)  # another one's names are in the store: that changes nothing
        pyro.get_param_store()["shift"] = torch.tensor(9.0)
        with pytest.raises(OptimizerError, match="shift"):
            svi.step(DATA[0])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_torchs_optimizer_does(backend: str) -> None:
    def trained(local: bool) -> list[Any]:
        pyro.clear_param_store()
        with pyro.settings.context(module_local_params=local):
            module = Regression(0.5)
            elbo = sgc.infer.TraceGraph_ELBO(backend=backend)
            svi = sgc.SVI(module, guide, lambda parameters: torch.optim.Adam(parameters, lr=0.1), elbo)
            losses = []
            for seed in range(4):
                pyro.set_rng_seed(seed)
                losses.append(svi.step(DATA[0]))
        assert bool(pyro.get_param_store()) is not local
        return [losses, *(p.detach().flatten().tolist() for p in module.parameters())]

    for mine, theirs in zip(trained(True), trained(False), strict=True):
        assert mine == pytest.approx(theirs)


def test_the_setting_is_guarded() -> None:
    with pyro.settings.context(module_local_params=True):
        module = Regression(0.5)
        loss_module = sgc.compile(module, guide, backend="eager")
        loss_module(DATA[0])
    assert not pyro.get_param_store()
    loss_module(DATA[0])
    assert "shift" in pyro.get_param_store()
    assert "module_local_params was on, is off" in str(loss_module.misses())
