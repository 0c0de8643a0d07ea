"""What guards and misses say: each name once, no formulas of torch's, no addresses, and remedies that are needed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn

import sgc
from sgc.errors import StandInWarning
from sgc.guards.snapshots import difference, note

ROWS = 12
WIDTH = 2


def model(x: Tensor, step: int = 0) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(WIDTH), 1.0).to_event(1))
    with pyro.plate("rows", ROWS, subsample=x):
        pyro.sample("x", dist.Normal(loc + step, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, step: int = 0) -> None:
        pyro.module("guide", self)
        pyro.sample("loc", dist.Normal(self.network(x).mean(0)[:WIDTH], 1.0).to_event(1))


def guards(loss_module: sgc.LossModule) -> list[str]:
    return loss_module.guards().splitlines()


@pytest.fixture
def loss_module() -> sgc.LossModule:
    return sgc.compile(model, Guide(), backend="eager").initialize(torch.ones(4, WIDTH))


def test_modules_in_a_mode_are_counted(loss_module: sgc.LossModule) -> None:
    assert "in train mode: Guide, Sequential, 2 Linear, Tanh" in guards(loss_module)
    guide = loss_module.guide
    assert isinstance(guide, Guide)
    guide.network[0].eval()
    loss_module(torch.ones(4, WIDTH))
    assert {"in train mode: Guide, Sequential, Tanh, Linear", "in eval mode: Linear"} <= set(guards(loss_module))


def test_parameters_in_the_store_and_in_a_module_are_one_line(loss_module: sgc.LossModule) -> None:
    told = [line for line in guards(loss_module) if "in Pyro's store and elsewhere" in line]
    names = [f"guide.network.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]
    assert told == [f"one tensor each in Pyro's store and elsewhere: {', '.join(names)}"]


def test_a_name_that_model_and_guide_use_is_told_once(loss_module: sgc.LossModule) -> None:
    assert sum(line.endswith(": WIDTH == 2") for line in guards(loss_module)) == 1


def test_conditions_on_sizes_read_as_python(loss_module: sgc.LossModule) -> None:
    loss_module(torch.ones(3, WIDTH))
    (scale,) = [line for line in guards(loss_module) if "asked at" in line and "12" in line]
    assert scale.startswith("12/n != 1 (asked at ")
    assert not any(word in line for line in guards(loss_module) for word in ("Ne(", "Eq(", "ToFloat", "TrueDiv"))


def test_partials_have_names_and_no_addresses() -> None:
    def shifted(by: float, parts: list[object], x: Tensor) -> None:
        model(x)

    wrapped = config_enumerate(partial(shifted, 2.0, [object()]))
    lines = guards(sgc.compile(wrapped, Guide(), backend="eager").initialize(torch.ones(4, WIDTH)))
    assert not any(line.startswith(".") or " at 0x" in line for line in lines)
    assert any(line.startswith("partial.args") for line in lines)


def test_no_remedy_where_sizes_and_numbers_are_open_from_then_on(loss_module: sgc.LossModule) -> None:
    loss_module(torch.ones(3, WIDTH))
    loss_module(torch.ones(3, WIDTH), 1)
    loss_module(torch.ones(3, WIDTH), 2)
    loss_module(torch.ones(5, WIDTH), 7)
    assert {miss.about: miss.remedy for miss in loss_module.misses()} == {
        "the shape of args[0]": "none is needed, the version that was made then is for any size",
        "the structure of the arguments changed": "pass as many arguments, under the same names",
        "args[1]": "none is needed, it is an input of the version that was made then",
    }


def test_a_size_that_python_needs_keeps_its_remedy() -> None:
    def rows(x: Tensor) -> None:
        for i in range(len(x)):
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i])

    loss_module = sgc.compile(rows, lambda x: None, backend="eager")
    for length in (3, 4, 5):
        loss_module(torch.ones(length))
    (miss,) = loss_module.misses()
    assert miss.remedy.startswith("pad data to a few shapes; the program needs the size itself at ")


def test_arrays_that_differ_should_be_tensors() -> None:
    def of_array(x: np.ndarray) -> None:
        model(torch.as_tensor(x, dtype=torch.float32))

    def guide(x: np.ndarray) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("at", torch.zeros(WIDTH)), 1.0).to_event(1))

    elbo = sgc.infer.TraceGraph_ELBO()
    with pytest.warns(StandInWarning, match="args\\[0\\] is another ndarray. Remedy: pass its numbers as a tensor"):
        for seed in range(5):
            elbo.loss(of_array, guide, np.random.default_rng(seed).normal(size=(4, WIDTH)))


def test_what_is_another_one_is_not_told_twice() -> None:
    """Of two values that are shown alike the text does not say that one was the other."""

    class Part:
        pass

    assert difference("it", Part(), note(Part())) == "it is another Part"
    assert difference("it", "b", note("a")) == "it was 'a', is 'b'"
    assert difference("it", 3, note(2)) == "it was 2, is 3"
    assert difference("it", torch.ones(2), note(torch.ones(2))) == "it is another Tensor"
