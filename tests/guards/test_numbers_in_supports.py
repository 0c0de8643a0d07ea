"""Numbers that change from call to call and bound the support of a distribution that is validated are no reads."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import sgc
from tests.side_by_side import side_by_side


class Above(dist.TorchDistribution):
    """An exponential distribution that starts at a number, in its support too."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, start: float, loc: Tensor) -> None:
        self.start, self.loc = start, loc
        super().__init__(loc.shape, torch.Size())

    @property
    def support(self) -> Any:
        return constraints.greater_than(self.start)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.loc - (value - self.start) * self.loc.exp()


def counts(x: Tensor, number: Any) -> None:
    logits = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", 100, subsample_size=len(x)):
        pyro.sample("x", dist.Multinomial(number, logits=logits), obs=x)


def of_the_batch(x: Tensor, beta: float) -> None:
    with poutine.scale(scale=beta):
        counts(x, int(x.sum(1).max().item()))


def of_an_argument(x: Tensor, beta: float) -> None:
    counts(x, int(60 + 10 * beta))


def trials(x: Tensor, beta: float) -> None:
    logits = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Binomial(int(60 + 10 * beta), logits=logits).to_event(1), obs=x)


def of_ones_own(x: Tensor, beta: float) -> None:
    logits = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", Above(beta, logits.expand(x.shape)).to_event(1), obs=x + 5)


def guide(x: Tensor, beta: float) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1))


def rows(n: int, seed: int) -> Tensor:
    return torch.poisson(torch.full((n, 3), 5.0), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6, 6, 6), (6, 6, 4, 6, 5, 4)])
@pytest.mark.parametrize("model", [of_the_batch, of_an_argument, trials, of_ones_own])
def test_pyros_numbers_by_few_versions(model: Callable[..., None], sizes: tuple[int, ...]) -> None:
    loss_module = sgc.compile(model, guide, backend="eager")
    for seed, n in enumerate(sizes):
        x, beta = rows(n, seed), 0.3 + 0.3 * seed
        of_sgc, of_pyro = side_by_side(loss_module, model, guide, x, beta, seed=seed, parameter="loc")
        torch.testing.assert_close(of_sgc, of_pyro, rtol=1e-4, atol=1e-4)
    assert len(loss_module.specializations) <= 4


def test_a_distribution_with_open_sizes_does_not_lead_to_what_torch_knows_of_them(tmp_path: Path) -> None:
    """An expanded distribution has its batch shape as an attribute. The sizes lead to torch's loggers, and these to
    open files, which cannot be copied.
    """
    torchs = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with open(tmp_path / "log", "w") as file:
        torchs.addHandler(handler := logging.StreamHandler(file))
        try:
            loss_module = sgc.compile(of_ones_own, guide, backend="eager")
            for n in (6, 4, 5, 7):
                loss_module(rows(n, n), 0.3)
        finally:
            torchs.removeHandler(handler)
    assert len(loss_module.specializations) == 2, loss_module.misses()


@pytest.mark.parametrize("model", [of_an_argument, of_ones_own])
def test_a_value_outside_is_still_pyros_error(model: Callable[..., None]) -> None:
    loss_module = sgc.compile(model, guide, backend="eager")
    for step in range(3):
        loss_module(rows(4, step), 0.5 + step)
    with pytest.raises(ValueError, match="support"):
        loss_module(rows(4, 0), -5.5 if model is of_an_argument else 100.0)


INSTALLED = """
import functools

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule


def moved(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Model(PyroModule):
    @moved
    def forward(self, x, beta=1.0):
        logits = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", 100, subsample_size=len(x)), pyro.poutine.scale(scale=beta):
            pyro.sample("x", dist.Multinomial(int(x.sum(1).max().item()), logits=logits), obs=x)
"""


def test_a_model_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "installed_counts.py").write_text(INSTALLED)
    monkeypatch.syspath_prepend(str(folder))
    model = importlib.import_module("installed_counts").Model()
    loss_module = sgc.compile(model, guide, backend="eager")
    for seed, n in enumerate((6, 6, 4, 6, 5, 4, 6, 6)):
        loss_module(rows(n, seed), 0.3 + 0.1 * seed)
        assert loss_module.verify(rows(n, seed), 0.3 + 0.1 * seed)
    assert len(loss_module.specializations) <= 4
