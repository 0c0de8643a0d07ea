"""Programs whose pictures are looked at: what is drawn of them is kept in ``golden``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import sgc

AVERAGE = {"baseline": {"use_decaying_avg_baseline": True}}


def coin() -> sgc.StochasticGraph:
    """A switch for each of some data, by the score function with a decaying-average baseline."""
    data = torch.tensor([-2.3, -2.1, -1.8, 1.7, 2.0, 2.4])

    def model(data: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-0.5, 0.5]))
        with pyro.plate("points", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(locs[z.long()], 1.0), obs=data)

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(data)))
        with pyro.plate("points", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=logits), infer=AVERAGE)

    return sgc.capture(model, guide, data)


def belief_net() -> sgc.StochasticGraph:
    """A sigmoid belief net of two layers with a neural baseline for each (Mnih and Gregor 2014)."""
    generator = nn.ModuleDict({"bottom": nn.Linear(8, 16), "pixels": nn.Linear(16, 64)})
    recogniser = nn.ModuleDict({"bottom": nn.Linear(64, 16), "top": nn.Linear(16, 8)})
    baselines = nn.ModuleDict({"bottom": nn.Linear(64, 1), "top": nn.Linear(16, 1)})

    def with_baseline(name: str, seen: Tensor) -> dict[str, Any]:
        def baseline(seen: Tensor) -> Tensor:
            value: Tensor = baselines[name](seen).squeeze(-1)
            return value

        return {"baseline": {"nn_baseline": baseline, "nn_baseline_input": seen, "use_decaying_avg_baseline": True}}

    def model(x: Tensor) -> None:
        pyro.module("generator", generator)
        with pyro.plate("images", len(x)):
            top = pyro.sample("top", dist.Bernoulli(torch.full((len(x), 8), 0.5)).to_event(1))
            bottom = pyro.sample("bottom", dist.Bernoulli(logits=generator["bottom"](top)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=generator["pixels"](bottom)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("recogniser", recogniser)
        pyro.module("baselines", baselines)
        with pyro.plate("images", len(x)):
            logits = recogniser["bottom"](x)
            bottom = pyro.sample("bottom", dist.Bernoulli(logits=logits).to_event(1), infer=with_baseline("bottom", x))
            logits = recogniser["top"](bottom)
            pyro.sample("top", dist.Bernoulli(logits=logits).to_event(1), infer=with_baseline("top", bottom))

    return sgc.capture(model, guide, torch.zeros(3, 64))


def hidden_markov_model(steps: int = 30) -> sgc.StochasticGraph:
    """A hidden Markov model whose first state has a parameter of its own; the guide runs along the chain too."""

    def model(data: Tensor) -> None:
        initial = pyro.param("initial", torch.full((3,), 1 / 3), constraint=constraints.simplex)
        transition = pyro.param("transition", torch.full((3, 3), 1 / 3), constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
        probs = initial
        for t in pyro.markov(range(steps)):
            z = pyro.sample(f"z_{t}", dist.Categorical(probs))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=data[t])
            probs = transition[z]

    def guide(data: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(steps, 3))
        carried = torch.zeros(3)
        for t in pyro.markov(range(steps)):
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits[t] + carried), infer=AVERAGE)
            carried = nn.functional.one_hot(z, 3).float()

    return sgc.capture(model, guide, torch.zeros(steps))


def topics() -> sgc.StochasticGraph:
    """Latent Dirichlet allocation; the topic of each word by the score function."""

    def model(seen: Tensor) -> None:
        with pyro.plate("topics", 8):
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.full((64,), 0.5)))
        with pyro.plate("documents", seen.shape[1]):
            mixture = pyro.sample("mixture", dist.Dirichlet(torch.full((8,), 0.5)))
            with pyro.plate("words", seen.shape[0]):
                z = pyro.sample("z", dist.Categorical(mixture))
                pyro.sample("word", dist.Categorical(topic_words[z]), obs=seen)

    def guide(seen: Tensor) -> None:
        for_topics = pyro.param("for_topics", torch.ones(8, 64), constraint=constraints.positive)
        for_mixtures = pyro.param("for_mixtures", torch.ones(seen.shape[1], 8), constraint=constraints.positive)
        logits = pyro.param("logits", torch.zeros(*seen.shape, 8))
        with pyro.plate("topics", 8):
            pyro.sample("topic_words", dist.Dirichlet(for_topics))
        with pyro.plate("documents", seen.shape[1]):
            pyro.sample("mixture", dist.Dirichlet(for_mixtures))
            with pyro.plate("words", seen.shape[0]):
                pyro.sample("z", dist.Categorical(logits=logits))

    return sgc.capture(model, guide, torch.zeros(32, 10, dtype=torch.long))


def autoguide(sites: int = 40) -> sgc.StochasticGraph:
    """A regression on many weights, each a site, with ``AutoNormal``."""

    def model(data: Tensor) -> None:
        weights = [pyro.sample(f"w_{i}", dist.Normal(0.0, 1.0)) for i in range(sites)]
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(data)):
            pyro.sample("y", dist.Normal(torch.stack(weights).sum(), scale), obs=data)

    return sgc.capture(model, AutoNormal(model), torch.zeros(5))


def sequential_plates() -> sgc.StochasticGraph:
    """A guide with a sequential plate, and a plate of its own in each of its steps."""
    data = torch.zeros(5, 3)

    def model(data: Tensor) -> None:
        for i in pyro.plate("groups", 5):
            level = pyro.sample(f"level_{i}", dist.Normal(0.0, 1.0))
            with pyro.plate(f"members_{i}", 3):
                z = pyro.sample(f"z_{i}", dist.Bernoulli(0.5))
                pyro.sample(f"x_{i}", dist.Normal(level + z, 1.0), obs=data[i])

    def guide(data: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.2))
        for i in pyro.plate("groups", 5):
            pyro.sample(f"level_{i}", dist.Normal(pyro.param(f"loc_{i}", torch.tensor(0.0)), 1.0))
            with pyro.plate(f"members_{i}", 3):
                pyro.sample(f"z_{i}", dist.Bernoulli(logits=q), infer=AVERAGE)

    return sgc.capture(model, guide, data)


def enumerated_chain(steps: int = 20) -> sgc.StochasticGraph:
    """A chain of choices that are summed out of the model, below a choice of the guide."""

    def model(seen: Tensor) -> None:
        fast = pyro.sample("fast", dist.Bernoulli(0.3))
        move = pyro.param("move", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
        level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z: Any = 0
        for t in pyro.markov(range(steps)):
            z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(level[z] * (1 + fast), 1.0), obs=seen[t])

    def guide(seen: Tensor) -> None:
        logits = pyro.param("logits", torch.tensor(0.1))
        pyro.sample("fast", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})
        pyro.sample("level", dist.Normal(pyro.param("loc", torch.zeros(2)), 0.1).to_event(1))

    seen = torch.linspace(-1.0, 1.0, steps)
    return sgc.compile(model, guide, backend="eager", objective="TraceEnum_ELBO").initialize(seen).graph


MODELS: dict[str, Callable[[], sgc.StochasticGraph]] = {
    "enumerated_chain": enumerated_chain,
    "coin": coin,
    "belief_net": belief_net,
    "hidden_markov_model": hidden_markov_model,
    "topics": topics,
    "autoguide": autoguide,
    "sequential_plates": sequential_plates,
}


@cache
def captured(name: str) -> sgc.StochasticGraph:
    """The graph of one of them, captured once."""
    pyro.clear_param_store()
    return MODELS[name]()


@cache
def six_steps() -> sgc.StochasticGraph:
    """The graph of a short hidden Markov model, captured once."""
    return hidden_markov_model(6)
