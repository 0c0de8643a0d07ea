"""Where the probabilities of an enumerated site come from: masks, names that move, one value, lost provenance."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor

import sgc
from sgc.errors import EnumerationError, EstimatorError
from tests.statistical.test_enumerated_sites import line


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


@pytest.mark.parametrize("mask", [False, torch.tensor(False)], ids=str)
def test_a_masked_distribution_does_not_tell_probabilities(mask: bool | Tensor) -> None:
    """The mask of a statement is none of its distribution: the value is drawn all the same."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=torch.tensor(0.5))

    def within() -> None:
        pyro.sample("z", dist.Bernoulli(logits=line("a")).mask(mask))

    def around() -> None:
        with pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Bernoulli(logits=line("a")))

    with pytest.raises(EnumerationError, match="at site 'z': its distribution is masked"):
        sgc.compile(model, within, backend="eager", estimators={"z": "enumerate"})()
    module = sgc.compile(model, around, backend="eager", estimators={"z": "enumerate"})
    q = torch.sigmoid(torch.tensor(0.3))
    z = torch.tensor([0.0, 1.0])
    costs = dist.Bernoulli(0.4).log_prob(z) + dist.Normal(3 * z, 1.0).log_prob(torch.tensor(0.5))
    assert float(module()) == pytest.approx(-float((torch.stack([1 - q, q]) * costs).sum()), rel=1e-12)
    assert module.verify()


def test_sites_whose_names_depend_on_a_random_subsample() -> None:
    """All rows are weighted, whichever were drawn when the program was first run."""

    def model() -> None:
        for i in pyro.plate("p", 5, subsample_size=3):
            z = pyro.sample(f"z{i}", dist.Bernoulli(0.4))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.5))

    def guide() -> None:
        for i in pyro.plate("p", 5, subsample_size=3):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=line("a")))

    module = sgc.compile(model, guide, backend="eager", estimators={"z*": "enumerate"})
    losses = {round(float(module()), 10) for _ in range(4)}
    assert len(losses) == 1  # nothing but the rows is drawn, and all rows are alike
    assert module.verify(), module.verify()
    of_rows = {f"z{i}": "enumerate" for i in range(5)}
    with pytest.raises(EstimatorError, match="the sequential plate 'p' around it draws which of its data it runs for"):
        sgc.compile(model, guide, backend="eager", estimators=of_rows)()


def test_a_support_of_one_value() -> None:
    """Its probability is one: no gradient passes through it, and verify says so."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(1)))
        w = pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(w + z, 1.0), obs=torch.tensor(0.5))

    def guide() -> None:
        z = pyro.sample("z", dist.Categorical(logits=line("a", 1)))
        pyro.sample("w", dist.Bernoulli(logits=line("c") + z))

    module = sgc.compile(model, guide, backend="eager", estimators={"z": "enumerate"})
    assert module.verify(), module.verify()


def test_verify_where_pyro_loses_the_provenance_of_a_pathwise_site() -> None:
    """Its dims still say which values its densities are of."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=line("a")))
        base = dist.Normal(0.5 * z, line("scale").exp())
        pyro.sample("w", dist.TransformedDistribution(base, [AffineTransform(line("b"), 2.0)]))

    module = sgc.compile(model, guide, backend="eager", estimators={"z": "enumerate"})
    assert module.verify(), module.verify()
