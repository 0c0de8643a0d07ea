"""What a loss module shows before its first call, and what it says of parameters that were replaced."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import sgc
from sgc.errors import NotInitializedWarning, ReplacedParameterWarning, SgcError

X = torch.tensor(2.0)


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=self.logit))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)) + self.loc, 1.0), obs=x)


def made(model: Any = model, guide: Any = guide) -> sgc.LossModule:
    return sgc.compile(model, guide, backend="eager")


# -- before the first call


@pytest.mark.parametrize(
    "ask",
    [
        lambda module: [*module.parameters()],
        lambda module: [*module.named_parameters()],
        lambda module: module.state_dict(),
        lambda module: nn.ModuleList([module]).state_dict(),
        lambda module: module.requires_grad_(False),
    ],
    ids=["parameters", "named", "state_dict", "of a list", "requires_grad_"],
)
@pytest.mark.parametrize("parts", [(model, guide), (model, Guide())], ids=["functions", "a module"])
def test_what_is_not_there_yet_is_said(ask: Callable[[sgc.LossModule], Any], parts: Any) -> None:
    module = made(*parts)
    with pytest.warns(NotInitializedWarning, match=r"before the first call lacks .*initialize\(\*args\) first"):
        ask(module)
    module.initialize(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(module)


def test_where_nothing_can_be_missing_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len([*made(Model(), Guide()).parameters()]) == 2
        module = made()
        module.train().eval().zero_grad()
        module.to(torch.float32).double().float()
        module.apply(lambda part: None)
        repr(module)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("within", [False, True])
def test_values_are_not_lost_that_are_loaded_before_the_first_call(strict: bool, within: bool) -> None:
    def placed(module: sgc.LossModule) -> nn.Module:
        return nn.ModuleList([module]) if within else module

    trained = made().initialize(X)
    with torch.no_grad():
        trained.param_store.q.fill_(2.5)
    state = placed(trained).state_dict()
    pyro.clear_param_store()
    module = made()
    with pytest.raises(
        SgcError, match=r"values for param_store.q, baselines.z, which are not .*\n.*initialize\(\*args\)"
    ):
        placed(module).load_state_dict(state, strict=strict)
    module.initialize(X)
    placed(module).load_state_dict(state, strict=strict)
    assert pyro.get_param_store()._params["q"].item() == 2.5


def test_what_is_there_can_be_loaded() -> None:
    state = made(Model(), Guide()).state_dict()
    module = made(Model(), Guide())
    with torch.no_grad():
        module.guide.logit.fill_(3.0)
    module.load_state_dict(state)
    assert module.guide.logit.item() == pytest.approx(0.3)
    with pytest.raises(SgcError, match=r"values for guide\.other"):
        module.load_state_dict({"guide.other": X}, strict=False)


# -- parameters that are replaced


def loaded() -> None:
    """As ``pyro.get_param_store().load(file)`` does."""
    store = pyro.get_param_store()
    state = store.get_state()
    fresh = {name: value.detach().clone().requires_grad_() for name, value in state["params"].items()}
    store.set_state({"params": fresh, "constraints": state["constraints"]})


def assigned() -> None:
    pyro.get_param_store()["q"] = torch.tensor(0.4)


@pytest.mark.parametrize("replace", [pyro.clear_param_store, loaded, assigned])
def test_an_optimizer_that_holds_what_nothing_uses(replace: Callable[[], None]) -> None:
    module = made().initialize(X)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(X).backward()
    replace()
    with pytest.warns(ReplacedParameterWarning, match=r"^q was replaced .*make a new one from loss_module\.parameters"):
        module(X).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X).backward()  # once
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        before = pyro.param("q").item()
        module(X).backward()
        optimizer.step()
        assert pyro.param("q").item() != before


def test_a_module_with_another_parameter() -> None:
    guide = Guide()
    module = made(model, guide).initialize(X)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(X).backward()
    guide.logit = nn.Parameter(torch.tensor(0.1))
    with pytest.warns(ReplacedParameterWarning, match=r"logit was replaced"):
        module(X).backward()
    assert optimizer.param_groups


@pytest.mark.parametrize("replace", [pyro.clear_param_store, loaded, assigned])
def test_nothing_is_said_where_nobody_holds_it(replace: Callable[[], None]) -> None:
    module = made().initialize(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X).backward()
        replace()
        module(X).backward()
        for _ in range(3):
            module((X + 0.0).requires_grad_()).backward()


def test_parameters_are_those_of_now() -> None:
    module = made().initialize(X)
    loaded()
    stored = pyro.get_param_store()._params["q"]
    assert next(module.parameters()) is stored
    assert module.state_dict()["param_store.q"].data_ptr() == stored.data_ptr()
    loaded()
    module.load_state_dict({"param_store.q": torch.tensor(2.0)}, strict=False)
    assert pyro.get_param_store()._params["q"].item() == 2.0
    loaded()
    module.double()
    assert pyro.get_param_store()._params["q"].dtype is torch.float64


@pytest.mark.parametrize("optim", [lambda: pyro.optim.Adam({"lr": 0.1}), lambda: torch.optim.Adam])
def test_an_svi_trains_what_takes_the_place(optim: Callable[[], Any]) -> None:
    svi = sgc.SVI(model, guide, optim(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    theirs = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), sgc.infer.TraceGraph_ELBO(backend="eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in (svi, theirs):
            one.step(X)
            pyro.clear_param_store()
            for _ in range(3):
                one.step(X)
            assert pyro.param("q").item() != pytest.approx(0.3, abs=1e-6)


def test_an_svi_whose_optimizer_was_given_its_parameters() -> None:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    parameters = elbo.compiled(model, guide).initialize(X).parameters()
    svi = sgc.SVI(model, guide, torch.optim.SGD(parameters, lr=0.1), elbo)
    svi.step(X)
    pyro.clear_param_store()
    with pytest.warns(ReplacedParameterWarning):
        svi.step(X)
