"""A decaying average with a row for each datum: exact in expectation whatever is in its rows, and of less variance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

import sgc
from tests.statistical.enumerate import Supports, binary, categories, exact_gradient, expected_estimate
from tests.subsampled import PER_DATUM, nested, over_rows


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def chain_in_a_plate() -> Any:
    """Two choices for each datum, the second conditioned on the first, and a global one above them."""
    x = torch.tensor([3.0, -1.0, 0.5, 2.0])

    def model(index: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("data", 4, subsample=index) as rows:
            a = pyro.sample("a", dist.Bernoulli(logits=g - pyro.param("p", torch.tensor(0.2))))
            b = pyro.sample("b", dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[a.long()]))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x[rows])

    def guide(index: Tensor) -> None:
        q = pyro.param("q", torch.tensor([0.1, 0.4, -0.3, 0.2]))
        g = pyro.sample("g", dist.Bernoulli(logits=q[0]))
        with pyro.plate("data", 4, subsample=index) as rows:
            a = pyro.sample("a", dist.Bernoulli(logits=q[rows] + g), infer=PER_DATUM)
            logits = torch.stack([q[1] * a, q[2] + a, q[0] - a], -1)
            pyro.sample("b", dist.Categorical(logits=logits), infer=PER_DATUM)

    return model, guide


def programs() -> dict[str, tuple[Any, tuple[Tensor, ...], Supports]]:
    """Model and guide, arguments, and the values of what is drawn, in the present default dtype."""
    return {
        "given": (over_rows(), (torch.tensor([4, 0, 6]),), {"z": binary(3)}),
        "twice the same": (over_rows(), (torch.tensor([4, 4, 1]),), {"z": binary(3)}),
        "nested": (nested(), (torch.tensor([3]), torch.tensor([2, 0])), {"z": binary(1, 2, 2)}),
        "chain": (chain_in_a_plate(), (torch.tensor([3, 1]),), {"g": binary(), "a": binary(2), "b": categories(3, 2)}),
    }


class Unscaled(Messenger):
    """The densities of a program without the factors of its plates: of what is drawn, they say how probable it is."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def of_seed(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda average: 30 * torch.randn(average.shape, dtype=average.dtype, generator=generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["given", "twice the same", "nested", "chain"])
def test_expected_gradient_is_exact(name: str, seed: int) -> None:
    (model, guide), args, supports = programs()[name]
    module = sgc.compile(model, guide, backend="eager").initialize(*args)
    leaves = list(module.param_store.parameters())
    drawn = Unscaled()(guide)
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves, drawn)
    loss, expected = expected_estimate(module, drawn, args, supports, leaves, of_seed(seed))
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(expected, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-11)


DATA = torch.linspace(-9.0, 9.0, 42)
"""Costs of about -x**2 / 2, from 0 to -40."""


def far_apart(per_datum: bool) -> Any:
    options = {"use_decaying_avg_baseline": True, "average_per_datum": per_datum}

    def model(index: Tensor) -> None:
        with pyro.plate("data", len(DATA), subsample=index) as rows:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[rows])

    def guide(index: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(DATA)))
        with pyro.plate("data", len(DATA), subsample=index) as rows:
            pyro.sample("z", dist.Bernoulli(logits=logits[rows]), infer={"baseline": options})

    return model, guide


def variance_after_epochs(per_datum: bool, epochs: int = 25, size: int = 8) -> float:
    """Of the gradient, as a mean over the batches of an epoch; the last one of each epoch is of two data."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    generator = torch.Generator().manual_seed(1)
    module = sgc.compile(*far_apart(per_datum), backend="eager").initialize(torch.arange(size))
    for _ in range(epochs):
        for batch in torch.randperm(len(DATA), generator=generator).split(size):
            module(batch).backward()
    batches = torch.randperm(len(DATA), generator=generator).split(size)
    pyro.set_rng_seed(2)
    measured = [module.gradient_variance(batch, samples=60).total for batch in batches]
    return sum(measured) / len(measured)


def test_variance_is_far_lower_where_costs_differ_by_datum() -> None:
    by_place, by_datum = variance_after_epochs(False), variance_after_epochs(True)
    assert by_datum < 0.05 * by_place, (by_datum, by_place)
