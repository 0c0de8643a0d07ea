"""Baselines of non-reparameterised sites."""

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
DECAYING: dict[str, Any] = {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}


class Scalar(nn.Module):
    """A linear map whose last dimension, of size one, is dropped."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).squeeze(-1)


def switch(data: Tensor) -> None:
    """A model with one discrete latent for all the data."""
    z = pyro.sample("z", dist.Bernoulli(0.4))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=data)


def switches(data: Tensor) -> None:
    """A model with one discrete latent for each row."""
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=data)


def switch_guide(baseline: dict[str, Any]) -> None:
    """The guide of ``switch``, with this baseline."""
    logit = pyro.param("logit", torch.tensor(0.2))
    pyro.sample("z", dist.Bernoulli(logits=logit), infer={"baseline": baseline})


def switches_guide(data: Tensor, baseline: dict[str, Any]) -> None:
    """The guide of ``switches``, with this baseline."""
    logits = pyro.param("logits", torch.zeros(len(data)))
    with pyro.plate("data", len(data)):
        pyro.sample("z", dist.Bernoulli(logits=logits), infer={"baseline": baseline})


@entry("Baselines", "A network on the data: nn_baseline and nn_baseline_input", inductor=True)
def network_baseline() -> Case:
    net = Scalar(3)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        switch_guide({"nn_baseline": net, "nn_baseline_input": data})

    return Case(switch, guide, (DATA,))


@entry("Baselines", "A network that is only named as a baseline, never registered")
def unregistered_network_baseline() -> Case:
    net = Scalar(3)

    def guide(data: Tensor) -> None:
        switch_guide({"nn_baseline": net, "nn_baseline_input": data})

    return Case(switch, guide, (DATA,))


@entry("Baselines", "baseline_value: a parameter, and a network's output", inductor=True)
def baseline_value() -> Case:
    net = Scalar(1)

    def model(data: Tensor) -> None:
        switch(data)
        with pyro.plate("rows", len(data)):
            w = pyro.sample("w", dist.Bernoulli(0.5))
            pyro.sample("fit", dist.Normal(w, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        switch_guide({"baseline_value": pyro.param("value", torch.tensor(-2.0))})
        logits = pyro.param("logits", torch.zeros(len(data)))
        baseline = {"baseline_value": net(data.unsqueeze(-1))}
        with pyro.plate("rows", len(data)):
            pyro.sample("w", dist.Bernoulli(logits=logits), infer={"baseline": baseline})

    return Case(model, guide, (DATA,))


@entry("Baselines", "A decaying average with its own baseline_beta", inductor=True)
def decaying_average_baseline() -> Case:
    def guide(data: Tensor) -> None:
        switch_guide(DECAYING)

    return Case(switch, guide, (DATA,))


@entry("Baselines", "A decaying average and a network together")
def decaying_and_network_baseline() -> Case:
    net = Scalar(3)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        switch_guide({**DECAYING, "nn_baseline": net, "nn_baseline_input": data})

    return Case(switch, guide, (DATA,))


@entry("Baselines", "A decaying average and a baseline_value together")
def decaying_and_value_baseline() -> Case:
    def guide(data: Tensor) -> None:
        switch_guide({**DECAYING, "baseline_value": pyro.param("value", torch.tensor(-2.0))})

    return Case(switch, guide, (DATA,))


@entry("Baselines", "In a plate: a network with a value for each row", inductor=True)
def network_baseline_in_a_plate() -> Case:
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), Scalar(3))

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        switches_guide(data, {"nn_baseline": net, "nn_baseline_input": data.unsqueeze(-1)})

    return Case(switches, guide, (DATA,))


@entry("Baselines", "In a plate: a decaying average for each row, and a network")
def decaying_baseline_in_a_plate() -> Case:
    net = Scalar(1)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        switches_guide(data, {**DECAYING, "nn_baseline": net, "nn_baseline_input": data.unsqueeze(-1)})

    return Case(switches, guide, (DATA,))


@entry("Baselines", "In a subsampled plate, whose rows' average is over whatever was drawn")
def baseline_in_a_subsampled_plate() -> Case:
    data = torch.linspace(-1.0, 2.0, 6)

    def model() -> None:
        with pyro.plate("data", 6, subsample_size=3) as batch:
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=data[batch])

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(6))
        with pyro.plate("data", 6, subsample_size=3) as batch:
            pyro.sample("z", dist.Bernoulli(logits=logits[batch]), infer={"baseline": DECAYING})

    return Case(model, guide)


@entry("Baselines", "On several sites, each with a baseline of another kind, one of them in nested plates")
def several_baselines() -> Case:
    net = Scalar(3)
    grid = torch.tensor([[0.3, -0.5, 1.1], [0.7, 0.2, -0.4]])

    def model(data: Tensor) -> None:
        k = pyro.sample("k", dist.Poisson(1.0))
        with pyro.plate("cols", 3):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            with pyro.plate("rows", 2):
                e = pyro.sample("e", dist.Bernoulli(0.3))
                pyro.sample("obs", dist.Normal(e + c - 0.2 * k, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        on_k = {"nn_baseline": net, "nn_baseline_input": data.mean(0)}
        k = pyro.sample("k", dist.Poisson(positive("rate", 1.2)), infer={"baseline": on_k})
        with pyro.plate("cols", 3):
            on_c = {"baseline_value": pyro.param("value", torch.zeros(3))}
            logits = pyro.param("c_logits", torch.zeros(3))
            c = pyro.sample("c", dist.Bernoulli(logits=logits - 0.1 * k), infer={"baseline": on_c})
            with pyro.plate("rows", 2):
                logits = pyro.param("e_logits", torch.zeros(2, 3))
                pyro.sample("e", dist.Bernoulli(logits=logits + c), infer={"baseline": DECAYING})

    return Case(model, guide, (grid,))


@entry("Baselines", "A baseline input that is itself a sample, which Pyro detaches", inductor=True)
def baseline_of_a_sample() -> Case:
    net = Scalar(1)

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Bernoulli(logits=x))
            pyro.sample("obs", dist.Normal(x + z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        loc = pyro.param("loc", torch.zeros(len(data)))
        with pyro.plate("data", len(data)):
            x = pyro.sample("x", dist.Normal(loc, positive("scale", 0.5)))
            baseline = {"nn_baseline": net, "nn_baseline_input": torch.stack([x], -1)}
            pyro.sample("z", dist.Bernoulli(logits=0.5 * x), infer={"baseline": baseline})

    return Case(model, guide, (DATA,))


@entry("Baselines", "A baseline input that is a tree: a dict of a parameter and the data")
def baseline_of_a_tree() -> Case:
    net = Scalar(3)

    def baseline(inputs: dict[str, Any]) -> Tensor:
        return net(inputs["data"]) + inputs["offsets"][0]

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        offset = pyro.param("offset", torch.tensor(0.3))
        switch_guide({"nn_baseline": baseline, "nn_baseline_input": {"data": data, "offsets": [offset]}})

    return Case(switch, guide, (DATA,))


@entry("Baselines", "Baselines on the sites of a sequential plate, by one shared network")
def shared_baseline() -> Case:
    net = Scalar(1)

    def model(data: Tensor) -> None:
        for i in pyro.plate("data", len(data)):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.4))
            pyro.sample(f"obs_{i}", dist.Normal(2.0 * z, 1.0), obs=data[i])

    def guide(data: Tensor) -> None:
        pyro.module("net", net)
        logits = pyro.param("logits", torch.zeros(len(data)))
        for i in pyro.plate("data", len(data)):
            baseline = {"nn_baseline": net, "nn_baseline_input": data[i : i + 1]}
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=logits[i]), infer={"baseline": baseline})

    return Case(model, guide, (DATA,))
