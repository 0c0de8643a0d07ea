"""Programs with enumerated sites on batches of many sizes: the second version is for any size, with Pyro's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.tracing import prototype

FEATURES = 4
SIZES = (30, 20, 25, 7)

Program = Callable[[Tensor], None]


def no_guide(data: Tensor) -> None:
    pass


def mixture(data: Tensor) -> None:
    weights = pyro.param("weights", torch.ones(3) / 3, constraint=dist.constraints.simplex)
    locs = pyro.param("locs", torch.arange(3.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=data[:, 0])


def chain(data: Tensor) -> None:
    transition = pyro.param("transition", torch.ones(3, 3) / 3, constraint=dist.constraints.simplex)
    locs = pyro.param("locs", torch.arange(3.0))
    with pyro.plate("data", len(data)):
        z: Any = 0
        for t in pyro.markov(range(FEATURES)):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=data[:, t])


def drawn(data: Tensor) -> None:
    with pyro.plate("data", 100, subsample=torch.arange(len(data))):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        weights = pyro.param("weights", torch.zeros(FEATURES))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weights, 1.0).to_event(1), obs=data)


def drawn_globally(data: Tensor) -> None:
    side = pyro.sample("side", dist.Bernoulli(0.3))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(side, pyro.param("scale", torch.tensor(1.5))), obs=data[:, 0])


def guess(asked: dict[str, Any]) -> Program:
    def guide(data: Tensor) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(data))):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))), infer=asked)

    return guide


def guess_globally(asked: dict[str, Any]) -> Program:
    def guide(data: Tensor) -> None:
        pyro.sample("side", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))), infer=asked)

    return guide


ENUM = {"objective": "TraceEnum_ELBO"}
PROGRAMS: dict[str, tuple[Program, Program, dict[str, Any]]] = {
    "a site of the model": (mixture, no_guide, ENUM),
    "a chain of the model": (chain, no_guide, ENUM),
    "a site of the guide": (drawn, guess({"enumerate": "parallel"}), ENUM),
    "one value after another": (drawn_globally, guess_globally({"enumerate": "sequential"}), ENUM),
    "several samples": (drawn, guess({"enumerate": "parallel", "num_samples": 3}), ENUM),
    "beside other estimators": (drawn, guess({}), {"estimators": {"z": "enumerate"}}),
    "a site of the model beside other estimators": (mixture, no_guide, {}),
    "a chain of the model beside other estimators": (chain, no_guide, {}),
    "several samples, leave-one-out": (
        drawn,
        guess({"num_samples": 3, "baseline": {"use_leave_one_out": True}}),
        {},
    ),
    "particles in a plate": (
        drawn,
        guess({}),
        {"estimators": {"z": "enumerate"}, "num_particles": 2, "vectorize_particles": True},
    ),
    "particles in a plate that nothing counts": (drawn, guess({}), {"num_particles": 2, "vectorize_particles": True}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_second_version_is_for_any_size(name: str) -> None:
    model, guide, options = PROGRAMS[name]
    torch.manual_seed(0)
    module = sgc.compile(model, guide, backend="eager", **options)
    for size in SIZES:
        module(torch.randn(size, FEATURES)).backward()
    assert len(module.specializations) == 2, module.misses()
    assert module.verify(torch.randn(13, FEATURES))
    assert len(module.specializations) == 2


@pytest.mark.parametrize("options", [ENUM, {"estimators": {"z": "enumerate"}}], ids=["TraceEnum_ELBO", "elbo"])
def test_a_number_that_moves_is_an_input_of_the_second_version(options: dict[str, Any]) -> None:
    def annealed(data: Tensor, width: float) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z * pyro.param("shift", torch.tensor(0.5)), width), obs=data)

    def guide(data: Tensor, width: float) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))), infer=asked)

    asked = {"enumerate": "parallel"} if options is ENUM else {}
    module = sgc.compile(annealed, guide, backend="eager", **options)
    for width in (2.0, 1.8, 1.6, 1.4, 1.2):
        module(torch.ones(6), width).backward()
    assert len(module.specializations) == 2, module.misses()
    assert module.verify(torch.ones(6), 1.1)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["a chain of the model", "beside other estimators"])
def test_compiled_steps_of_any_size_train_as_pyros_do(name: str) -> None:
    model, guide, options = PROGRAMS[name]
    torch.manual_seed(0)
    batches = [torch.randn(size, FEATURES) for size in SIZES]
    losses: dict[bool, list[float]] = {}
    ends: dict[bool, dict[str, Tensor]] = {}
    for compiled in (True, False):
        pyro.clear_param_store()
        optimizer = pyro.optim.Adam({"lr": 0.1})
        if compiled:
            ours = sgc.infer.TraceEnum_ELBO if options is ENUM else sgc.infer.TraceGraph_ELBO
            own = {key: value for key, value in options.items() if key != "objective"}
            svi: Any = sgc.SVI(model, guide, optimizer, ours(max_plate_nesting=1, **own))
        else:
            of_pyro = guide if options is ENUM else pyro.infer.config_enumerate(guide)
            svi = pyro.infer.SVI(model, of_pyro, optimizer, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1))
        losses[compiled] = [svi.step(batch) for batch in batches * 2]
        ends[compiled] = {key: value.detach().clone() for key, value in pyro.get_param_store().items()}
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    for key, value in ends[False].items():
        torch.testing.assert_close(ends[True][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_runs_that_find_something_out_are_not_what_the_captured_one_is_compared_with(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How deep plates are nested, or that a site asks for several values: a capture that differs runs Pyro again."""
    differences = []
    compare = prototype.difference

    def noting(captured: Any, eager: Any) -> Any:
        differences.append(compare(captured, eager))
        return differences[-1]

    monkeypatch.setattr(prototype, "difference", noting)
    model, guide, options = PROGRAMS[name]
    sgc.compile(model, guide, backend="eager", **options).initialize(torch.zeros(5, FEATURES))
    assert differences == [None]
