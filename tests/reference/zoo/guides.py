"""Hand-written guides: amortised, structured, hierarchical, of more or fewer sites than the model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import autoguide
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry

DATA = torch.tensor([0.4, -0.3, 1.2])


@entry("Guides", "A structured guide: each site depends on those before it, in another order than the model's")
def structured_guide() -> Case:
    def model(data: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(logits=a))
        c = pyro.sample("c", dist.Normal(a + b, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(c, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.2, 0.1, 0.3]))
        c = pyro.sample("c", dist.Normal(loc[0], positive("scale", 0.5)))
        b = pyro.sample("b", dist.Bernoulli(logits=loc[1] * c))
        pyro.sample("a", dist.Normal(loc[2] + b * c, 0.4))

    return Case(model, guide, (DATA,))


@entry("Guides", "An amortised guide with a discrete and a continuous latent per row", inductor=True)
def amortised_guide() -> Case:
    encoder = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            on = pyro.sample("on", dist.Bernoulli(0.5))
            size = pyro.sample("size", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(on * size, 0.5), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(data)):
            logit, loc, raw = encoder(data.unsqueeze(-1)).unbind(-1)
            pyro.sample("on", dist.Bernoulli(logits=logit))
            pyro.sample("size", dist.Normal(loc, nn.functional.softplus(raw)))

    return Case(model, guide, (DATA,))


@entry("Guides", "The model's prior as the guide, and a guide that calls part of the model")
def prior_as_guide() -> Case:
    def prior() -> Tensor:
        rate = positive("rate", 1.5)
        return pyro.sample("x", dist.Poisson(rate)) + pyro.sample("y", dist.Gamma(rate, 1.0))

    def model() -> None:
        pyro.sample("obs", dist.Normal(prior(), 1.0), obs=torch.tensor(2.5))

    return Case(model, prior)


@entry("Guides", "A guide written as an object with a call method, and a model as a bound method", inductor=True)
def callable_objects() -> Case:
    class Experiment:
        noise = 0.5

        def simulate(self, data: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(data)):
                pyro.sample("obs", dist.Normal(z, self.noise), obs=data)

        def __call__(self, data: Tensor) -> None:
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), self.noise))

    experiment = Experiment()
    return Case(experiment.simulate, experiment, (DATA,))


@entry("Guides", "A guide whose latent is an autoregressive function of another's noise")
def autoregressive_guide() -> Case:
    net = AutoRegressiveNN(3, [4])

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        bits = pyro.sample("bits", dist.Bernoulli(0.5).expand([3]).to_event(1))
        pyro.sample("obs", dist.Normal(z + bits, 1.0).to_event(1), obs=DATA)

    def guide() -> None:
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(3)), 0.5).to_event(1))
        mean, log_scale = net(z)
        pyro.sample("bits", dist.Bernoulli(logits=mean + log_scale).to_event(1))

    return Case(model, guide)


@entry("Guides", "Latents of a nested structure: a sum over tree-like submodels, drawn in a loop")
def looped_sites() -> Case:
    def branch(name: str, depth: int, parent: Tensor) -> Tensor:
        value = pyro.sample(name, dist.Normal(parent, 1.0))
        if depth == 0:
            return value
        return branch(f"{name}l", depth - 1, value) + branch(f"{name}r", depth - 1, value)

    def model() -> None:
        total = branch("t", 2, torch.tensor(0.0))
        pyro.sample("obs", dist.Normal(total, 1.0), obs=torch.tensor(1.4))

    def guide() -> None:
        for name in ("t", "tl", "tll", "tlr", "tr", "trl", "trr"):
            pyro.sample(name, dist.Normal(pyro.param(f"{name}_loc", torch.tensor(0.1)), 0.3))

    return Case(model, guide)


@entry("Guides", "A model site the guide leaves out, which is then drawn from the prior")
def missing_from_the_guide() -> Case:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        nuisance = pyro.sample("nuisance", dist.Normal(0.0, 0.5))
        pyro.sample("obs", dist.Normal(a + nuisance, 1.0), obs=torch.tensor(0.9))

    def guide() -> None:
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.1)), positive("scale", 0.5)))

    return Case(model, guide)


@entry("Guides", "AutoDiscreteParallel, sampled rather than enumerated")
def auto_discrete_parallel() -> Case:
    def model(data: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("obs", dist.Normal(locs[z], 1.0), obs=data)

    return Case(model, autoguide.AutoDiscreteParallel(model), (DATA,))
