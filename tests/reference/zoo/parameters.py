"""Parameters: how a program comes by them, and which of them get a gradient."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection

ENTRIES = Collection()
entry = ENTRIES.entry

DATA = torch.tensor([0.3, -1.2, 0.8, 2.1])


@entry("Parameters", "Scalars with interval-like constraints", inductor=True)
def constrained_scalars() -> Case:
    def model(data: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        prob = pyro.sample("prob", dist.Beta(2.0, 2.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        cap = pyro.param("cap", torch.tensor(3.0), constraint=constraints.greater_than(2.5))
        floor = pyro.param("floor", torch.tensor(-2.0), constraint=constraints.less_than(-1.0))
        loc = shift + prob * cap + (1 - prob) * floor
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, 1 / rate), obs=data)

    def guide(data: Tensor) -> None:
        conc = pyro.param("conc", torch.tensor(3.0), constraint=constraints.positive)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.softplus_positive)
        pyro.sample("rate", dist.Gamma(conc, scale))
        mean = pyro.param("mean", torch.tensor(0.4), constraint=constraints.unit_interval)
        size = pyro.param("size", torch.tensor(5.0), constraint=constraints.interval(1.0, 20.0))
        pyro.sample("prob", dist.Beta(mean * size, (1 - mean) * size))
        width = pyro.param("width", torch.tensor(0.7), constraint=constraints.nonnegative)
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.1)), width))

    return Case(model, guide, (DATA,))


@entry("Parameters", "Vectors on the simplex, ordered, positive and ordered, on the sphere", inductor=True)
def constrained_vectors() -> Case:
    def model(data: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        means = pyro.param("means", torch.tensor([-1.0, 0.0, 2.0]), constraint=constraints.ordered_vector)
        scales = pyro.param("scales", torch.tensor([0.5, 1.0, 1.5]), constraint=constraints.positive_ordered_vector)
        direction = pyro.param("direction", torch.tensor([0.6, 0.0, 0.8]), constraint=constraints.sphere)
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        components = dist.Normal(means + z * direction, scales)
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), components)
        with pyro.plate("data", len(data)):
            pyro.sample("obs", mixture, obs=data)

    def guide(data: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.full((3,), 0.3), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Case(model, guide, (DATA,))


@entry("Parameters", "Cholesky factors, correlations and positive definite matrices")
def constrained_matrices() -> Case:
    def model(data: Tensor) -> None:
        corr = pyro.param("corr", torch.eye(2), constraint=constraints.corr_cholesky)
        cov = pyro.param("cov", torch.eye(2), constraint=constraints.positive_definite)
        x = pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=corr))
        y = pyro.sample("y", dist.MultivariateNormal(x, cov))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(y.sum(), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
        soft = pyro.param("soft", torch.eye(2), constraint=constraints.softplus_lower_cholesky)
        unit = pyro.param("unit", torch.eye(2), constraint=constraints.unit_lower_cholesky)
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))
        pyro.sample("y", dist.MultivariateNormal(pyro.param("loc", torch.ones(2)), scale_tril=unit @ soft))

    return Case(model, guide, (DATA,))


@entry("Parameters", "Parameters drawn at random, and a batch of constrained ones", inductor=True)
def random_initial_values() -> Case:
    def model() -> None:
        topics = pyro.param(
            "topics",
            lambda: torch.rand(2, 3).softmax(-1),
            constraint=constraints.independent(constraints.simplex, 1),
        )
        with pyro.plate("topic", 2):
            word = pyro.sample("word", dist.Dirichlet(1 + topics))
        pyro.sample("obs", dist.Normal(word.sum(0), 0.5).to_event(1), obs=torch.tensor([0.5, 1.0, 0.5]))

    def guide() -> None:
        conc = pyro.param("conc", lambda: torch.randn(2, 3).exp(), constraint=constraints.positive)
        with pyro.plate("topic", 2):
            pyro.sample("word", dist.Dirichlet(conc))

    return Case(model, guide)


@entry("Parameters", "Modules registered by pyro.module in the model and in the guide", inductor=True)
def registered_modules() -> Case:
    decoder = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4))
    encoder = nn.Linear(4, 4)

    def model(data: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("obs", dist.Normal(decoder(z), 0.5).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(data)):
            loc, raw = encoder(data).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))

    return Case(model, guide, (torch.randn(3, 4),))


@entry("Parameters", "One module registered in the model and in the guide")
def shared_module() -> Case:
    embed = nn.Linear(1, 2)

    def features(data: Tensor) -> Tensor:
        pyro.module("embed", embed)
        return torch.tanh(embed(data.unsqueeze(-1)))

    def model(data: Tensor) -> None:
        h = features(data)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(h[:, 0], 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        h = features(data)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(h[:, 1], 0.5))

    return Case(model, guide, (DATA,))


@entry("Parameters", "Modules that are only closed over, never shown to Pyro")
def closed_over_modules() -> Case:
    decoder, encoder = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(decoder(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(encoder(data.unsqueeze(-1)).squeeze(-1), 0.5))

    return Case(model, guide, (DATA,))


@entry("Parameters", "Leaf tensors that are only closed over", inductor=True)
def closed_over_leaves() -> Case:
    log_scale = torch.tensor(-0.5, requires_grad=True)
    loc = torch.tensor(0.2, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("obs", dist.Normal(z, log_scale.exp()), obs=DATA)

    def guide() -> None:
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return Case(model, guide)


@entry("Parameters", "A module with one frozen parameter")
def frozen_module_parameter() -> Case:
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("net", net)
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(net(x).squeeze(-1), noise), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("noise", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.2))

    return Case(model, guide, (torch.randn(4, 2), DATA))


@entry("Parameters", "Parameters whose gradient stays None: one unused, one detached, one overwritten")
def parameters_without_gradient() -> Case:
    def model() -> None:
        pyro.param("unused", torch.tensor(1.0), constraint=constraints.positive)
        loc = pyro.param("detached", torch.tensor(0.5)).detach()
        mixing = pyro.param("overwritten", torch.ones(2)).clone()
        mixing[:] = torch.tensor([0.5, 1.5])
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("obs", dist.Normal(z * mixing, 1.0), obs=torch.tensor([0.1, 0.2]))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.5))

    return Case(model, guide)


@entry("Parameters", "A parameter with event_dim, cut down by the subsampled plate it is in")
def subsampled_parameters() -> Case:
    data = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)

    def model() -> None:
        with pyro.plate("rows", 6, subsample_size=3) as rows:
            weight = pyro.param("weight", torch.ones(6), event_dim=0)
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(weight.unsqueeze(-1) * z, 1.0).to_event(1), obs=data[rows])

    def guide() -> None:
        with pyro.plate("rows", 6, subsample_size=3):
            loc = pyro.param("loc", lambda: torch.randn(6, 2), event_dim=1)
            scale = pyro.param("scale", torch.full((6, 2), 0.5), constraint=constraints.positive, event_dim=1)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Case(model, guide)


@entry("Parameters", "A likelihood alone: an empty guide, and parameters in the model only", inductor=True)
def maximum_likelihood() -> Case:
    def model(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, scale), obs=data)

    def guide(data: Tensor) -> None:
        pass

    return Case(model, guide, (DATA,))


@entry("Parameters", "A parameter read in the model and in the guide, and one tensor under two names")
def parameters_read_twice() -> Case:
    base = torch.tensor([0.5, -0.5])

    def model() -> None:
        loc = pyro.param("loc", base)
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(z * pyro.param("loc"), 1.0).to_event(1), obs=torch.tensor([0.3, 0.4]))

    def guide() -> None:
        loc = pyro.param("loc", base)
        log_scale = pyro.param("log_scale", base)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide)
