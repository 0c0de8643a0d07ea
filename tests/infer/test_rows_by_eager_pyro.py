"""Calls that eager Pyro makes move on the rows of an average for each datum as compiled ones do."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.errors import BaselineError
from tests.programs import Pair
from tests.subsampled import AVERAGE, OPTIONS, PER_DATUM, PlainLoop, X, in_store, over_minibatches

BATCHES = [torch.tensor([5, 0, 5]), torch.tensor([2, 4, 1]), torch.tensor([3])]


def branching(infer: Any = PER_DATUM) -> Pair:
    """A branch on samples, which a compiled program does not have."""

    def model(index: Tensor) -> None:
        with pyro.plate("data", len(X), subsample=index) as rows:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(2 * z, 1.0 if z.sum() > 1.5 else 2.0), obs=X[rows])

    def guide(index: Tensor) -> None:
        logits = pyro.param("logits", lambda: torch.linspace(-0.5, 0.5, len(X)))
        with pyro.plate("data", len(X), subsample=index) as rows:
            pyro.sample("z", dist.Bernoulli(logits=logits[rows]), infer=infer)

    return model, guide


def svi_of(program: Pair, dynamic: Any) -> sgc.SVI:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager", dynamic=dynamic, rng="torch")
    return sgc.SVI(*program, pyro.optim.SGD({"lr": 0.0}), elbo)


@pytest.mark.parametrize("dynamic", ["eager", "speculate"])
@pytest.mark.filterwarnings("ignore")
def test_the_average_is_that_of_the_plain_loop(dynamic: str) -> None:
    program = branching()
    svi, loop = svi_of(program, dynamic), PlainLoop(program, {"data": 0}, len(X))
    for seed in range(12):
        batch = BATCHES[seed % 3]
        loop.step(seed, batch)
        pyro.set_rng_seed(seed)
        svi.step(batch)
        assert torch.allclose(in_store(), loop.average, atol=1e-5)
    assert [name for name in pyro.get_param_store()._params if name.startswith(AVERAGE)] == [AVERAGE]


@pytest.mark.filterwarnings("ignore")
def test_averages_by_place_have_a_shape_each() -> None:
    """Pyro itself fails where the shape changes."""
    svi = svi_of(branching({"baseline": {"use_decaying_avg_baseline": True}}), "eager")
    for batch in (*BATCHES, *BATCHES):
        svi.step(batch)
    kept = {name: value.shape for name, value in pyro.get_param_store()._params.items() if name.startswith(AVERAGE)}
    assert kept == {AVERAGE: (3,), f"{AVERAGE}_scalar": ()}


@pytest.mark.parametrize(
    ("program", "args", "problem"),
    [
        (branching({"baseline": {**OPTIONS, "use_decaying_avg_baseline": False}}), (BATCHES[0],), "no such average"),
        (over_minibatches(), (X[:2], torch.tensor([0, 7])), "rows beyond its 7"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_is_refused_there_too(program: Pair, args: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(BaselineError, match=problem) as caught:
        svi_of(program, "eager").step(*args)
    assert caught.value.site == "z" and caught.value.source is not None
    assert AVERAGE not in pyro.get_param_store()._params
