"""Whole steps: one with something invalid writes nothing, raises Pyro's error, and training can go on."""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import sgc
from sgc.errors import InvalidValueError, StandInWarning
from sgc.runtime import validity
from tests.training.programs import adam, fresh, is_compiled, make_svi, values
from tests.validation.programs import CASES, latent, t

GOOD, BAD = t(1.0, 0.0, 1.0), t(1.0, 4.0, 1.0)
BASELINE = {"baseline": {"use_decaying_avg_baseline": True}}
BACKENDS = ["inductor", "eager"]


def model(x: Tensor) -> None:
    weight = pyro.param("weight", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Bernoulli(logits=weight + z), obs=x)


def guide(x: Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(3))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logits), infer=BASELINE)


def everything(svi: sgc.SVI) -> Any:
    """Parameters, averages, optimizer and random state, as plain numbers."""
    return tree_map(lambda leaf: leaf.tolist() if hasattr(leaf, "tolist") else leaf, svi.state_dict())


def shape_of(text: str) -> str:
    """A text without its numbers: a compiled optimizer rounds otherwise than torch's."""
    return re.sub(r"-?\d+\.\d+", "#", text)


def pyros_error(program: Any, *args: Any) -> ValueError:
    state = torch.get_rng_state()
    with pytest.raises(ValueError) as caught:
        pyro.infer.TraceGraph_ELBO(max_plate_nesting=1).loss(*program, *args)
    torch.set_rng_state(state)
    return caught.value


@pytest.mark.parametrize(
    "optim", [adam, lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=3), pyro.optim.Adam({"lr": 0.03})]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step(backend: str, optim: Any, uncompiled: None) -> None:
    twin = fresh(optim, program=(model, guide), backend=backend)
    expected = [twin.step(GOOD) for _ in range(5)]
    svi = fresh(optim, program=(model, guide), backend=backend)
    losses = [svi.step(GOOD) for _ in range(3)]
    for _ in range(2):
        before, error = everything(svi), pyros_error((model, guide), BAD)
        with pytest.raises(ValueError) as caught:
            svi.step(BAD)
        assert (type(caught.value), str(caught.value)) == (type(error), str(error))
        assert everything(svi) == before
    losses += [svi.step(GOOD) for _ in range(2)]
    assert losses == expected


def test_a_step_of_inductor() -> None:
    svi = fresh(program=(model, guide))
    for _ in range(3):
        svi.step(GOOD)
    assert is_compiled(svi, GOOD)
    before, error = everything(svi), pyros_error((model, guide), BAD)
    with pytest.raises(ValueError) as caught:
        svi.step(BAD)
    assert str(caught.value) == str(error)
    assert everything(svi) == before
    with pytest.raises(ValueError) as caught:
        svi.run([GOOD, GOOD, BAD, GOOD])
    assert "at site 'x'" in str(caught.value)
    assert len(svi.result.losses) == 2 and svi.result.losses.isfinite().all()
    assert svi.run(20, GOOD).losses.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_over_minibatches(backend: str, uncompiled: None) -> None:
    svi = fresh(program=(model, guide), backend=backend)
    svi.run(6, GOOD)
    before, losses = everything(svi), svi.result.losses
    svi = fresh(program=(model, guide), backend=backend)
    with pytest.raises(ValueError, match="at site 'x'"):
        svi.run([GOOD] * 6 + [BAD] + [GOOD] * 3)
    assert torch.equal(svi.result.losses, losses)
    assert everything(svi) == before


def sinking(x: Tensor) -> None:
    """``scale`` sinks by 0.1 at each step; Pyro's loss is finite, and rising, where it is negative."""
    scale = pyro.param("scale", torch.tensor(0.35))
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Bernoulli(scale), obs=x)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 30])
def test_a_parameter_that_becomes_invalid(steps: int, backend: str, uncompiled: None) -> None:
    """At the step at which Pyro raises, with its text, one step at a time or many in a stretch."""
    program = sinking, lambda x: latent()
    x = t(0.0)

    def theirs() -> tuple[int, str, dict[str, Tensor], Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        elbo = pyro.infer.TraceGraph_ELBO(max_plate_nesting=1)
        elbo.loss(*program, x)
        parameters = [pyro.param(name) for name in ("loc", "scale")]
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        pyro.set_rng_seed(1)
        for number in range(30):
            optimizer.zero_grad()
            start = torch.get_rng_state()
            try:
                elbo.loss_and_grads(*program, x)
            except ValueError as error:
                return number, str(error), values(), start
            optimizer.step()
        raise AssertionError("it never became invalid")

    number, text, parameters, start = theirs()
    assert number > 3
    svi = fresh(sgd, program=program, backend=backend)
    svi.initialize(x)
    pyro.set_rng_seed(1)
    taken = 0
    with pytest.raises(ValueError) as caught:
        for _ in range(30):
            svi.run(steps, x)
            taken += 1
    assert shape_of(str(caught.value)) == shape_of(text)
    assert (len(svi.result.losses) if steps > 1 else taken) == number
    torch.testing.assert_close(values(), parameters)
    assert torch.equal(torch.get_rng_state(), start)


def test_where_pyro_finds_nothing_wrong_the_step_is_taken(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two may differ by rounding; here Pyro is made to look away."""
    monkeypatch.setattr(validity, "run_validated", lambda *_: None)
    svi = fresh(program=(model, guide))
    for _ in range(3):
        svi.step(GOOD)
    before = values()
    with pytest.warns(StandInWarning, match="rounding"):
        assert torch.isfinite(torch.tensor(svi.step(BAD)))
    assert (values()["weight"] != before["weight"]).all()
    with pytest.warns(StandInWarning, match="rounding"):
        assert svi.run([GOOD, BAD, BAD, GOOD]).losses.isfinite().all()
    assert len(svi.result.losses) == 4
    svi = make_svi(adam, program=(model, guide), validate=False)
    assert svi.run([GOOD, BAD, BAD, GOOD]).losses.isfinite().all()


def test_numbers_that_pyro_does_not_draw(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "run_validated", lambda *_: None)
    case = CASES["the guide's value"]
    pyro.clear_param_store()
    svi = sgc.SVI(case.model, case.guide, adam)
    for _ in range(3):
        svi.step(*case.good)
    before = everything(svi)
    with pytest.raises(InvalidValueError, match="random") as caught:
        svi.step(*case.bad)
    assert "support of Gamma" in str(caught.value)
    assert everything(svi) == before


def test_nothing_is_checked_where_nothing_is_asked_for(uncompiled: None) -> None:
    svi = fresh(program=(model, guide), validate=False)
    for _ in range(3):
        assert torch.isfinite(torch.tensor(svi.step(GOOD)))
    assert torch.isfinite(torch.tensor(svi.step(BAD)))
