"""More than one particle, one after another or vectorised."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry

DATA = torch.tensor([0.4, -0.3, 1.2])
SEQUENTIAL: dict[str, Any] = {"num_particles": 3}
VECTORIZED: dict[str, Any] = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
DECAYING: dict[str, Any] = {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}


def mixed(data: Tensor) -> None:
    """A continuous global latent, and a discrete one for each row."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("obs", dist.Normal(loc + 2.0 * z, 1.0), obs=data)


def mixed_guide(baseline: dict[str, Any] | None = None) -> Any:
    """The guide of ``mixed``, with this baseline at the discrete sites."""

    def guide(data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.1)), positive("q_scale", 0.5)))
        logits = pyro.param("logits", torch.zeros(len(data)))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=logits), infer={"baseline": baseline or {}})

    return guide


def switch(data: Tensor) -> None:
    """A discrete latent outside every plate."""
    k = pyro.sample("k", dist.Poisson(1.5))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(k, 1.0), obs=data)


@entry("Particles", "Three particles, one after another", inductor=True)
def sequential_particles() -> Case:
    return Case(mixed, mixed_guide(), (DATA,), options=SEQUENTIAL)


@entry("Particles", "Three particles, vectorised, with a plate", inductor=True)
def vectorized_particles() -> Case:
    return Case(mixed, mixed_guide(), (DATA,), options=VECTORIZED)


@entry("Particles", "Vectorised particles whose plate nesting Pyro guesses by a run of its own")
def vectorized_particles_guessed() -> Case:
    return Case(mixed, mixed_guide(), (DATA,), options={"num_particles": 2, "vectorize_particles": True})


@entry("Particles", "One particle with vectorize_particles set, which changes nothing")
def one_vectorized_particle() -> Case:
    options = {"num_particles": 1, "vectorize_particles": True, "max_plate_nesting": 1}
    return Case(mixed, mixed_guide(), (DATA,), options=options)


@entry("Particles", "Particles one after another, each of which moves the decaying average", inductor=True)
def sequential_particles_decaying() -> Case:
    return Case(mixed, mixed_guide(DECAYING), (DATA,), options=SEQUENTIAL)


@entry("Particles", "Vectorised particles with a decaying average for each of them", inductor=True)
def vectorized_particles_decaying() -> Case:
    return Case(mixed, mixed_guide(DECAYING), (DATA,), options=VECTORIZED)


@entry("Particles", "Particles one after another with a network baseline")
def sequential_particles_network() -> Case:
    net = nn.Linear(3, 1)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        baseline = {"nn_baseline": lambda x: net(x).squeeze(-1), "nn_baseline_input": data}
        pyro.sample("k", dist.Poisson(positive("rate", 1.2)), infer={"baseline": baseline})

    return Case(switch, guide, (DATA,), options={"num_particles": 2})


@entry("Particles", "Vectorised particles with a baseline_value for each of them")
def vectorized_particles_value() -> Case:
    def guide(data: Tensor) -> None:
        value = pyro.param("value", torch.tensor([[-1.0], [0.0], [1.0]]))
        pyro.sample("k", dist.Poisson(positive("rate", 1.2)), infer={"baseline": {"baseline_value": value}})

    return Case(switch, guide, (DATA,), options=VECTORIZED)


@entry("Particles", "Vectorised particles with a discrete latent that is an index")
def vectorized_particles_index() -> Case:
    def model(data: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 0.5, 2.0]))
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        with pyro.plate("data", len(data)):
            w = pyro.sample("w", dist.Categorical(torch.ones(3)))
            pyro.sample("obs", dist.Normal(locs[z] + locs[w], 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Categorical(logits=pyro.param("z_logits", torch.zeros(3))))
        with pyro.plate("data", len(data)):
            pyro.sample("w", dist.Categorical(logits=pyro.param("w_logits", torch.zeros(3, 3))))

    return Case(model, guide, (DATA,), options=VECTORIZED)


@entry("Particles", "Vectorised particles of an amortised guide with events and nested plates")
def vectorized_particles_nested() -> Case:
    net = nn.Linear(2, 4)

    def model(data: Tensor) -> None:
        with pyro.plate("cols", 3, dim=-1), pyro.plate("rows", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(z, 1.0).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        loc, raw = net(data).chunk(2, -1)
        with pyro.plate("cols", 3, dim=-1), pyro.plate("rows", 2, dim=-2):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    options = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 2}
    return Case(model, guide, (torch.randn(2, 3, 2),), options=options)


@entry("Particles", "Vectorised particles under a subsampled plate, whose indices they share")
def vectorized_particles_subsampled() -> Case:
    data = torch.linspace(-1.0, 2.0, 6)

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample_size=3) as batch:
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("obs", dist.Normal(loc + z, 1.0), obs=data[batch])

    def guide() -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.1)), positive("q_scale", 0.5)))
        logits = pyro.param("logits", torch.zeros(6))
        with pyro.plate("data", 6, subsample_size=3) as batch:
            pyro.sample("z", dist.Bernoulli(logits=logits[batch]))

    return Case(model, guide, options=VECTORIZED)


@entry("Particles", "An autoguide under vectorised particles")
def vectorized_particles_autoguide() -> Case:
    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, scale), obs=data)

    return Case(model, pyro.infer.autoguide.AutoNormal(model), (DATA,), options=VECTORIZED)
