"""Programs that are valid for some arguments and not for others, and what eager Pyro raises for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceGraph_ELBO
from torch import Tensor

Program = Callable[..., None]


@dataclass(frozen=True)
class Case:
    """A model (with :func:`latent` as its guide by default), arguments that are valid, others that are not."""

    model: Program
    good: tuple[Tensor, ...]
    bad: tuple[Tensor, ...]
    guide: Program = field(default=lambda *_: latent())


def latent() -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))


def site_of(make: Callable[[Tensor], Any], obs: Any) -> Program:
    """A model that observes ``obs`` of a distribution whose parameter is the argument."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        observed = torch.as_tensor(obs)
        pyro.sample("x", make(x + 0 * z), obs=observed)

    return model


def observing(make: Callable[[Tensor], Any]) -> Program:
    """A model that observes its argument, of a distribution made from the latent."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", make(z), obs=x)

    return model


def t(*numbers: Any) -> Tensor:
    return torch.tensor(numbers) if len(numbers) > 1 else torch.tensor(numbers[0])


def _plated(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", x.shape[1], dim=-1), pyro.plate("rows", x.shape[0], dim=-2):
        pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def _subsampled(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=3) as rows:
        pyro.sample("x", dist.Poisson(z.exp()), obs=x[rows])


def _partly_observed(x: Tensor, mask: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=mask)


def _partly_observed_guide(x: Tensor, mask: Tensor) -> None:
    latent()
    with pyro.plate("rows", len(x)):
        pyro.sample("x_unobserved", dist.Normal(0.0, 1.0))


def _masked_out(x: Tensor, mask: Tensor) -> None:
    """Pyro validates what a mask hides, too."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)), poutine.mask(mask=mask):
        pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def _zero_inflated(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.ZeroInflatedPoisson(rate=z.exp(), gate=torch.tensor(0.3)), obs=x)


def _mixture(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    mixing = dist.Categorical(x)
    pyro.sample("x", dist.MixtureSameFamily(mixing, dist.Normal(z.expand(2), 1.0)), obs=torch.tensor(0.5))


def _masked_mixture(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    gamma, normal = dist.Gamma(2.0, 1.0).expand([2]), dist.Normal(z, 1.0).expand([2])
    pyro.sample("x", dist.MaskedMixture(torch.tensor([True, False]), gamma, normal).to_event(1), obs=x)


def _of_the_guide(x: Tensor) -> None:
    """The guide's value must lie in the model's support."""
    pyro.sample("z", dist.Gamma(2.0, 1.0))


def _shifted_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)) + x, 1e-3))


def _guide_of_the_argument(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), x))


def _plain(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def _scaled(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=x + 0 * z):
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def _own_switch(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("loose", dist.Bernoulli(torch.tensor(0.5), validate_args=False), obs=x)
    pyro.sample("strict", dist.Bernoulli(torch.tensor(0.5), validate_args=True), obs=x)


BAD_TRIL = torch.tensor([[1.0, 0.0], [0.3, -1.0]])
BAD_COVARIANCE = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
ASYMMETRIC = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
EYE = torch.eye(2)

CASES: dict[str, Case] = {
    "Bernoulli probs": Case(site_of(lambda p: dist.Bernoulli(p), 1.0), (t(0.5),), (t(1.2),)),
    "Bernoulli value": Case(
        observing(lambda z: dist.Bernoulli(logits=z.expand(2)).to_event(1)), (t(1.0, 0.0),), (t(1.0, 2.0),)
    ),
    "Normal scale": Case(site_of(lambda s: dist.Normal(0.0, s), 1.0), (t(0.5),), (t(-0.5),)),
    "Normal loc NaN": Case(site_of(lambda m: dist.Normal(m, 1.0), 1.0), (t(0.5),), (t(float("nan")),)),
    "Categorical probs": Case(site_of(lambda p: dist.Categorical(p), 0), (t(0.5, 0.5),), (t(0.5, -0.1),)),
    "Categorical value": Case(observing(lambda z: dist.Categorical(logits=torch.stack([z, -z]))), (t(1),), (t(2),)),
    "OneHotCategorical": Case(
        observing(lambda z: dist.OneHotCategorical(logits=torch.stack([z, -z]))), (t(1.0, 0.0),), (t(1.0, 1.0),)
    ),
    "Poisson value": Case(observing(lambda z: dist.Poisson(z.exp())), (t(3.0),), (t(-1.0),)),
    "Poisson fraction": Case(observing(lambda z: dist.Poisson(z.exp())), (t(3.0),), (t(1.5),)),
    "Poisson rate": Case(site_of(lambda r: dist.Poisson(r), 3.0), (t(0.5),), (t(-0.5),)),
    "Binomial value": Case(observing(lambda z: dist.Binomial(5, logits=z)), (t(3.0),), (t(6.0),)),
    "Geometric probs": Case(site_of(lambda p: dist.Geometric(p), 3.0), (t(0.5),), (t(0.0),)),
    "poutine.scale": Case(_scaled, (t(1.0),), (t(-1.0),)),
    "Gamma concentration": Case(site_of(lambda a: dist.Gamma(a, 1.0), 3.0), (t(0.5),), (t(-0.5),)),
    "Gamma value": Case(observing(lambda z: dist.Gamma(z.exp(), 1.0)), (t(0.5),), (t(-0.5),)),
    "Beta concentration": Case(site_of(lambda a: dist.Beta(a, 1.0), 0.3), (t(0.5),), (t(-0.5),)),
    "Beta value": Case(observing(lambda z: dist.Beta(z.exp(), 1.0)), (t(0.5),), (t(1.5),)),
    "Dirichlet concentration": Case(site_of(lambda a: dist.Dirichlet(a), [0.3, 0.7]), (t(0.5, 1.0),), (t(-0.5, 1.0),)),
    "Dirichlet value": Case(observing(lambda z: dist.Dirichlet(z.exp().expand(2))), (t(0.5, 0.5),), (t(0.5, 0.6),)),
    "Uniform value": Case(observing(lambda z: dist.Uniform(z - 5, z + 5)), (t(0.5),), (t(50.0),)),
    "Exponential rate": Case(site_of(lambda r: dist.Exponential(r), 3.0), (t(0.5),), (t(-0.5),)),
    "StudentT df": Case(site_of(lambda d: dist.StudentT(d), 3.0), (t(0.5),), (t(-0.5),)),
    "LogNormal value": Case(observing(lambda z: dist.LogNormal(z, 1.0)), (t(0.5),), (t(-0.5),)),
    "LogNormal scale": Case(site_of(lambda s: dist.LogNormal(0.0, s), 3.0), (t(0.5),), (t(-0.5),)),
    "Weibull value": Case(observing(lambda z: dist.Weibull(z.exp(), 1.0)), (t(0.5),), (t(-0.5),)),
    "HalfCauchy value": Case(observing(lambda z: dist.HalfCauchy(z.exp())), (t(0.5),), (t(-0.5),)),
    "VonMises value": Case(observing(lambda z: dist.VonMises(z, 1.0)), (t(0.5),), (t(float("nan")),)),
    "LKJ value": Case(observing(lambda z: dist.LKJCholesky(2, z.exp())), (EYE,), (2 * EYE,)),
    "MVN scale_tril": Case(
        site_of(lambda a: dist.MultivariateNormal(torch.zeros(2), scale_tril=a), [0.3, 0.7]), (EYE,), (BAD_TRIL,)
    ),
    "MVN covariance": Case(
        site_of(lambda a: dist.MultivariateNormal(torch.zeros(2), a), [0.3, 0.7]), (EYE,), (BAD_COVARIANCE,)
    ),
    "MVN asymmetric": Case(
        site_of(lambda a: dist.MultivariateNormal(torch.zeros(2), a), [0.3, 0.7]), (EYE,), (ASYMMETRIC,)
    ),
    "Independent": Case(
        site_of(lambda s: dist.Normal(torch.zeros(2), s).to_event(1), [0.3, 0.7]), (t(1.0, 1.0),), (t(1.0, -1.0),)
    ),
    "expanded": Case(
        observing(lambda z: dist.Gamma(z.exp(), 1.0).expand([2]).to_event(1)), (t(1.0, 1.0),), (t(1.0, -1.0),)
    ),
    "masked distribution": Case(
        observing(lambda z: dist.Gamma(z.exp(), 1.0).expand([2]).mask(t(True, False)).to_event(1)),
        (t(1.0, 1.0),),
        (t(1.0, -1.0),),
    ),
    "plates": Case(_plated, (torch.ones(2, 3),), (torch.ones(2, 3).fill_diagonal_(3.0),)),
    "subsampled plate": Case(_subsampled, (torch.ones(4),), (-torch.ones(4),)),
    "obs_mask": Case(
        _partly_observed, (t(1.0, 2.0), t(True, False)), (t(1.0, float("nan")), t(True, False)), _partly_observed_guide
    ),
    "poutine.mask": Case(_masked_out, (t(1.0, 0.0), t(True, False)), (t(1.0, 7.0), t(True, False))),
    "zero-inflated": Case(_zero_inflated, (t(1.0),), (t(-1.0),)),
    "mixture weights": Case(_mixture, (t(0.5, 0.5),), (t(1.5, -0.5),)),
    "MaskedMixture": Case(_masked_mixture, (t(-1.0, 0.5),), (t(0.5, float("nan")),)),
    "the guide's value": Case(_of_the_guide, (t(1.0),), (t(-1.0),), _shifted_guide),
    "the guide's scale": Case(_plain, (t(1.0),), (t(-1.0),), _guide_of_the_argument),
    "validate_args at the site": Case(_own_switch, (t(1.0),), (t(3.0),)),
}


def pyros_error(case: Case, *, num_particles: int = 1, vectorize: bool = False, seed: int = 3) -> ValueError:
    """What eager Pyro raises for the bad arguments, with the parameters as they are."""
    elbo = TraceGraph_ELBO(num_particles=num_particles, vectorize_particles=vectorize, max_plate_nesting=2)
    pyro.set_rng_seed(seed)
    with pytest.raises(ValueError) as caught:
        elbo.loss(case.model, case.guide, *case.bad)
    return caught.value


class Refusing(constraints.Constraint):
    """A constraint whose check is Python that looks at numbers."""

    def check(self, value: Tensor) -> Tensor:
        if value.sum().item() > 10:
            return torch.zeros_like(value, dtype=torch.bool)
        return value > 0


class Refuser(dist.Normal):
    """A Normal with an odd support."""

    support = Refusing()


class Branching(dist.Exponential):
    """An Exponential whose density branches on its rate."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return super().log_prob(value) if self.rate.sum() < 1e9 else value
