"""Closed forms of two densities of a site: ``TraceMeanField_ELBO``."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from tests.reference.objectives.comparison import Comparisons, Trained
from tests.reference.objectives.summed_out import pictures, spread

COMPARISONS = Comparisons("Closed forms: `TraceMeanField_ELBO`")
add = COMPARISONS.add


def positive(name: str, start: Tensor) -> Tensor:
    return pyro.param(name, start, constraint=constraints.positive)


@add("A VAE, whose divergence from a standard normal has a closed form", inductor=True)
def autoencoder() -> Trained:
    encoder, decoder = nn.Linear(6, 4), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 6))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), torch.ones(len(x), 2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Trained(model, guide, (pictures(5),), "TraceMeanField_ELBO")


@add("A Bayesian network of two layers, its weights by PyroSample and AutoNormal")
def bayesian_network() -> Trained:
    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = PyroModule[nn.Linear](2, 3)
            self.hidden.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
            self.hidden.bias = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            self.out = PyroModule[nn.Linear](3, 1)
            self.out.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            mean = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, scale), obs=y)
            return mean

    net = Net()
    x = spread(6, 2)
    return Trained(net, AutoNormal(net, init_scale=0.1), (x, x.sum(-1).sin()), "TraceMeanField_ELBO")


@add("Poisson counts with gamma rates in two levels, as in a deep exponential family")
def gammas_in_two_levels() -> Trained:
    def model(counts: Tensor) -> None:
        with pyro.plate("weights", 3):
            w = pyro.sample("w", dist.Gamma(0.3 * torch.ones(4), 0.3).to_event(1))
        with pyro.plate("data", len(counts)):
            z = pyro.sample("z", dist.Gamma(0.5 * torch.ones(3), 0.5).to_event(1))
            pyro.sample("counts", dist.Poisson(z @ w + 1e-3).to_event(1), obs=counts)

    def guide(counts: Tensor) -> None:
        with pyro.plate("weights", 3):
            pyro.sample(
                "w", dist.Gamma(positive("aw", torch.full((3, 4), 2.0)), positive("bw", torch.ones(3, 4))).to_event(1)
            )
        with pyro.plate("data", len(counts)):
            shape, rate = positive("az", torch.full((len(counts), 3), 1.5)), positive("bz", torch.ones(len(counts), 3))
            pyro.sample("z", dist.Gamma(shape, rate).to_event(1))

    return Trained(model, guide, ((3 * spread(5, 4).cos().abs()).round(),), "TraceMeanField_ELBO")


@add("A matrix of ratings, factored over two plates that cross, some entries missing")
def factored_ratings() -> Trained:
    def model(ratings: Tensor, known: Tensor) -> None:
        users, films = pyro.plate("users", 3, dim=-2), pyro.plate("films", 4, dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with films:
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with users, films, pyro.poutine.mask(mask=known):
            pyro.sample("rating", dist.Normal(u * v, 0.5), obs=ratings)

    def guide(ratings: Tensor, known: Tensor) -> None:
        with pyro.plate("users", 3, dim=-2):
            pyro.sample(
                "u", dist.Normal(pyro.param("u_loc", spread(3, 1)), positive("u_scale", torch.full((3, 1), 0.3)))
            )
        with pyro.plate("films", 4, dim=-1):
            pyro.sample("v", dist.Normal(pyro.param("v_loc", spread(4)), positive("v_scale", torch.full((4,), 0.3))))

    return Trained(model, guide, (spread(3, 4), spread(3, 4) > -1.0), "TraceMeanField_ELBO")


@add("Proportions with a Dirichlet prior, in minibatches and with several particles side by side")
def proportions_by_particles() -> Trained:
    def model(labels: Tensor) -> None:
        probs = pyro.sample("probs", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(labels), subsample_size=4) as chosen:
            pyro.sample("label", dist.Categorical(probs), obs=labels[chosen])

    def guide(labels: Tensor) -> None:
        pyro.sample("probs", dist.Dirichlet(positive("concentration", torch.tensor([2.0, 1.0, 3.0]))))
        pyro.plate("data", len(labels), subsample_size=4)

    options = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    return Trained(model, guide, (torch.tensor([0, 2, 1, 2, 2, 0, 1]),), "TraceMeanField_ELBO", options)
