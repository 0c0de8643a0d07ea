"""Averages for each datum that cannot be had, or that have no effect."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.errors import BaselineError, BaselineWarning
from tests.programs import Pair
from tests.subsampled import AVERAGE, OPTIONS, PER_DATUM, X, in_store, over_minibatches, over_rows

N = len(X)


def asking(**options: Any) -> Pair:
    return over_rows({"baseline": {**OPTIONS, **options}})


def in_a_loop() -> Pair:
    def model() -> None:
        for i in pyro.plate("data", N, 2):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=X[i])

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(N))
        for i in pyro.plate("data", N, 2):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=logits[i]), infer=PER_DATUM)

    return model, guide


def of_a_sample() -> Pair:
    """Which rows there are depends on a choice."""

    def model() -> None:
        start = pyro.sample("start", dist.Categorical(torch.ones(4)))
        with pyro.plate("data", N, subsample=start + torch.arange(3)) as rows:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[rows])

    def guide() -> None:
        start = pyro.sample("start", dist.Categorical(logits=pyro.param("starts", torch.zeros(4))))
        logits = pyro.param("logits", torch.zeros(N))
        with pyro.plate("data", N, subsample=start + torch.arange(3)) as rows:
            pyro.sample("z", dist.Bernoulli(logits=logits[rows]), infer=PER_DATUM)

    return model, guide


def of_a_tensors_size() -> Pair:
    model, guide = over_minibatches()

    def sized(program: Any) -> Any:
        def within(size: Tensor, index: Tensor) -> None:
            with pyro.plate("groups", size, subsample=index, dim=-2):
                program(X[:2], index)

        return within

    return sized(model), sized(guide)


ROWS = (torch.tensor([0, 1]),)
REFUSED: dict[str, tuple[Pair, tuple[Any, ...], str, str]] = {
    "without an average": (
        asking(use_decaying_avg_baseline=False),
        ROWS,
        "there is no such average",
        "add use_decaying_avg_baseline=True",
    ),
    "no bool": (asking(average_per_datum=1), ROWS, "average_per_datum is 1, not a bool", "write True or False"),
    "beside leave-one-out": (asking(use_leave_one_out=True), ROWS, "cannot be combined with use_decaying", "give one"),
    "in a loop": (in_a_loop(), (), "the plate 'data' is a loop over a subsample", "with pyro.plate"),
    "rows of a sample": (of_a_sample(), (), "depends on the sample of 'start'", "not depend on a sample"),
    "a tensor's size": (of_a_tensors_size(), (torch.tensor(5), *ROWS), "has a tensor for its size", "as a number"),
    "beyond the last": (over_minibatches(), (X[:2], torch.tensor([0, N])), "rows beyond its 7", "from 0 to 6"),
    "before the first": (over_minibatches(), (X[:2], torch.tensor([-1 - N, 0])), "rows beyond its 7", "from 0 to 6"),
    "no whole numbers": (over_minibatches(), (X[:2], torch.tensor([0.0, 1.0])), "is float32[2]", "numbers of its rows"),
    "a mask": (over_minibatches(), (X[:2], torch.tensor([True, False])), "is bool[2]", "numbers of its rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_an_error_and_changes_nothing(name: str) -> None:
    (model, guide), args, problem, remedy = REFUSED[name]
    state = torch.get_rng_state()
    with pytest.raises(BaselineError) as caught:
        sgc.compile(model, guide, backend="eager")(*args)
    error = caught.value
    assert problem in error.problem and remedy in error.remedy, str(error)
    assert error.site is not None and error.site.startswith("z")
    assert error.source is not None and 'pyro.sample("z' in error.source.text.replace('f"', '"')
    assert AVERAGE not in pyro.get_param_store()._params and torch.equal(torch.get_rng_state(), state)


def test_without_a_plate_it_has_no_effect() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(0.1))), infer=PER_DATUM)

    with pytest.warns(BaselineWarning, match="average_per_datum has no effect, because the site is in no plate"):
        module = sgc.compile(model, guide, backend="eager")
        module().backward()
    assert in_store().shape == () and module.verify()
