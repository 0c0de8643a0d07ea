"""Checkpoints and copies of an SVI: whatever was there when they were made, the run goes on from it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import sgc
from sgc.errors import SgcError, StandInWarning
from sgc.tracing.state.random_state import random_state
from tests.training.programs import DATA, GAUSSIAN, adam, fresh, gaussian_model, make_svi, values

FOUR = torch.arange(4.0)


def later_guide(data: Tensor) -> None:
    """Its second parameter appears with four data."""
    positive = constraints.positive
    scale = pyro.param("late", torch.tensor(0.3), constraint=positive) if len(data) > 3 else torch.tensor(0.3)
    pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.0)), scale))


def one_for_each_length(data: Tensor) -> None:
    """Two parameters, whose order is the order of the captures."""
    pyro.sample("loc", dist.Normal(pyro.param(f"of {len(data)}", torch.tensor(0.0)), 0.3))


@pytest.mark.parametrize("make", [lambda: pyro.optim.Adam({"lr": 0.1}), lambda: adam], ids=["Pyro's", "torch's"])
def test_a_state_from_before_the_first_step_has_no_momentum(make: Callable[[], Any], uncompiled: None) -> None:
    svi = fresh(make(), program=GAUSSIAN).initialize(DATA)
    state = svi.state_dict()
    losses, expected = svi.run(5, DATA).losses, values()
    svi.load_state_dict(state)
    assert torch.equal(svi.run(5, DATA).losses, losses)
    assert values() == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: adam,
        lambda: lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda: lambda parameters: torch.optim.LBFGS(parameters, max_iter=2),
        lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9}),
        lambda: pyro.optim.StepLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "step_size": 2}),
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.9}),
    ],
    ids=["Adam", "SGD", "LBFGS", "ClippedAdam", "StepLR", "ExponentialLR"],
)
@pytest.mark.filterwarnings("ignore::sgc.errors.StandInWarning")
def test_a_state_is_read_as_weights_only(make: Callable[[], Any], uncompiled: None, tmp_path: Path) -> None:
    """Tensors and plain values: what is loaded runs nothing, numpy's random state included."""
    svi = fresh(make(), program=GAUSSIAN)
    svi.run(3, DATA)
    torch.save(svi.state_dict(), tmp_path / "state.pt")
    after_saving = np.random.rand()
    losses, expected = svi.run(3, DATA).losses, values()
    svi.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert np.random.rand() == after_saving
    assert torch.equal(svi.run(3, DATA).losses, losses)
    assert values() == expected


def test_a_state_with_numpys_own_array_is_taken_too(uncompiled: None) -> None:
    """As sgc wrote it before."""
    svi = fresh(program=GAUSSIAN)
    svi.run(3, DATA)
    state = svi.state_dict() | {"random": random_state()}
    drawn = np.random.rand()
    losses = svi.run(3, DATA).losses
    svi.load_state_dict(state)
    assert np.random.rand() == drawn
    assert torch.equal(svi.run(3, DATA).losses, losses)


@pytest.mark.parametrize(
    ("guide", "calls"),
    [(later_guide, [DATA, DATA, FOUR, FOUR]), (one_for_each_length, [DATA, FOUR, DATA, FOUR, DATA])],
    ids=["a parameter that appeared later", "parameters in another order"],
)
@pytest.mark.parametrize("order", [[DATA, FOUR], [FOUR, DATA]], ids=["in order", "reversed"])
def test_each_parameter_gets_its_own_state(
    guide: Callable[..., Any], calls: list[Tensor], order: list[Tensor], uncompiled: None
) -> None:
    def go_on(svi: sgc.SVI) -> list[float]:
        return [svi.step(data) for data in (FOUR, DATA, FOUR, DATA, FOUR)]

    svi = fresh(program=(gaussian_model, guide))
    for data in calls:
        svi.step(data)
    state = svi.state_dict()
    losses, expected = go_on(svi), values()
    resumed = fresh(program=(gaussian_model, guide))
    for data in order:
        resumed.initialize(data)
    resumed.load_state_dict(state)
    assert go_on(resumed) == losses
    assert values() == expected


def test_lbfgs_goes_on_with_a_parameter_that_appears_later(uncompiled: None) -> None:
    svi = fresh(lambda p: torch.optim.LBFGS(p, lr=0.01), program=(gaussian_model, later_guide))
    with pytest.warns(StandInWarning, match="LBFGS evaluates the loss itself"):
        for data in (DATA, DATA, FOUR, FOUR):
            svi.step(data)
    assert values()["late"] != torch.tensor(0.3).log()


def _foreign_states(svi: sgc.SVI) -> dict[str, tuple[dict[str, Any], str]]:
    state = svi.state_dict()
    pyros = make_svi(pyro.optim.Adam({"lr": 0.1}), program=GAUSSIAN)
    pyros.step(DATA)
    other_group = {**state, "optimizer": {**state["optimizer"], "names": [["another"]]}}
    return {
        "an empty dictionary": ({}, "no state of an SVI"),
        "an optimizer's": (state["optimizer"], "no state of an SVI"),
        "one of Pyro's optimizer": (pyros.state_dict(), "is Pyro's Adam, this one is torch's Adam"),
        "other parameters": (
            other_group,
            "has other parameters: the saved one alone has another; this",
        ),
    }


@pytest.mark.parametrize(
    "kind", ["an empty dictionary", "an optimizer's", "one of Pyro's optimizer", "other parameters"]
)
def test_a_state_that_does_not_fit_changes_nothing(kind: str, uncompiled: None) -> None:
    svi = fresh(program=GAUSSIAN)
    svi.run(3, DATA)
    state, text = _foreign_states(svi)[kind]
    svi.run(2, DATA)
    before, momentum = values(), svi.state_dict()["optimizer"]["state"]
    with pytest.raises(SgcError, match=text):
        svi.load_state_dict(state)
    assert values() == before
    assert svi.state_dict()["optimizer"]["state"] == momentum


def test_torchs_state_is_not_taken_for_pyros(uncompiled: None) -> None:
    svi = fresh(program=GAUSSIAN)
    svi.run(2, DATA)
    with pytest.raises(SgcError, match="is torch's Adam, this one is Pyro's Adam"):
        make_svi(pyro.optim.Adam({"lr": 0.1}), program=GAUSSIAN).initialize(DATA).load_state_dict(svi.state_dict())


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.0))

    def forward(self, data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(self.mean, 0.3))


def _pickled(svi: sgc.SVI) -> sgc.SVI:
    found: sgc.SVI = pickle.loads(pickle.dumps(svi))
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_copy_trains_its_own_parameters(
    steps_before: int, copied: Callable[[sgc.SVI], sgc.SVI], uncompiled: None
) -> None:
    guide = Guide()
    svi = fresh(torch.optim.Adam(guide.parameters(), lr=0.1), program=(gaussian_model, guide))
    for _ in range(steps_before):
        svi.step(DATA)
    other, before = copied(svi), guide.mean.item()
    pyro.set_rng_seed(2)
    losses = [other.step(DATA) for _ in range(3)]
    assert guide.mean.item() == before
    assert other.guide.mean.item() != before
    pyro.set_rng_seed(2)
    assert [svi.step(DATA) for _ in range(3)] == pytest.approx(losses, rel=1e-6)
    assert guide.mean.item() == pytest.approx(other.guide.mean.item(), rel=1e-6)
