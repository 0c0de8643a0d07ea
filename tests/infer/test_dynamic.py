"""Programs without one structure are refused, or, on request, run by eager Pyro."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch

import sgc.infer
from sgc.errors import CaptureError, DataDependenceError, StandInWarning
from tests.programs import discrete_chain

AVERAGED = {"baseline": {"use_decaying_avg_baseline": True}}


def branching() -> None:
    if pyro.sample("z", dist.Bernoulli(0.5), infer={}) > 0:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def branching_guide() -> None:
    q = pyro.param("q", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(q), infer=AVERAGED)


def test_a_branch_on_a_sample_is_refused() -> None:
    with pytest.raises(DataDependenceError, match="at site 'z'") as caught:
        sgc.infer.TraceGraph_ELBO().loss(branching, branching_guide)
    assert "if pyro.sample" in str(caught.value)


def test_on_request_eager_pyro_runs_it_with_one_warning() -> None:
    losses: dict[str, list[float]] = {}
    for name, loss in (("pyro", pyro.infer.TraceGraph_ELBO()), ("sgc", sgc.infer.TraceGraph_ELBO(dynamic="eager"))):
        pyro.clear_param_store()
        pyro.set_rng_seed(4)
        optimizer = pyro.optim.Adam({"lr": 0.05})
        svi = sgc.infer.SVI(branching, branching_guide, optimizer, loss)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses[name] = [svi.step() for _ in range(8)] + [svi.evaluate_loss()]
        if name == "sgc":
            assert [w.category for w in caught] == [StandInWarning]
            assert "eager Pyro" in str(caught[0].message)
            assert "if pyro.sample" in str(caught[0].message)
            assert len(optimizer.optim_objs) == 1
    assert losses["sgc"] == losses["pyro"]


def test_programs_that_can_be_compiled_are_compiled_nevertheless() -> None:
    elbo = sgc.infer.TraceGraph_ELBO(dynamic="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo.loss_and_grads(*discrete_chain(2))
    assert sum(len(compiled.specializations) for compiled in elbo._compiled) == 1


def test_the_eager_loss_is_differentiable_and_a_module() -> None:
    elbo = sgc.infer.TraceGraph_ELBO(dynamic="eager")
    module = elbo(branching, branching_guide)
    pyro.set_rng_seed(9)
    with pytest.warns(StandInWarning):
        loss = module()
    loss.backward()
    gradient = pyro.get_param_store()._params["q"].grad
    assert gradient is not None
    pyro.get_param_store()._params["q"].grad = None
    del pyro.get_param_store()["__baseline_avg_downstream_cost_z"]
    pyro.set_rng_seed(9)
    assert loss.item() == pytest.approx(pyro.infer.TraceGraph_ELBO().loss_and_grads(branching, branching_guide))
    torch.testing.assert_close(pyro.get_param_store()._params["q"].grad, gradient)


def test_an_infinite_loss_stays_infinite() -> None:
    def model() -> None:
        branching()
        pyro.factor("impossible", torch.tensor(-float("inf")))

    with pytest.warns(StandInWarning):
        assert sgc.infer.TraceGraph_ELBO(dynamic="eager").loss_and_grads(model, branching_guide) == float("inf")


def test_numbers_of_python_are_refused() -> None:
    def model() -> None:
        if random.random() < 0.5:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))

    with pytest.raises((CaptureError, DataDependenceError), match="random"):
        sgc.infer.TraceGraph_ELBO().loss(model, lambda: None)
    with pytest.warns(StandInWarning):
        sgc.infer.TraceGraph_ELBO(dynamic="eager").loss(model, lambda: None)


@pytest.mark.parametrize("dynamic", ["error", "eager"])
def test_other_errors_are_never_swallowed(dynamic: Any) -> None:
    def model() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        sgc.infer.TraceGraph_ELBO(dynamic=dynamic).loss(model, model)
