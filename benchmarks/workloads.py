"""What is measured: unmodified Pyro programs. Each function makes a fresh model and guide, and their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from sklearn.datasets import load_digits
from torch import Tensor, nn

PIXELS = 64


class Workload(NamedTuple):
    """A model and guide, and the arguments to call them with."""

    model: Callable[..., None]
    guide: Callable[..., None]
    args: tuple[Tensor, ...]


def beta_bernoulli() -> Workload:
    """A coin flipped 10 times: almost no arithmetic, hence a measure of what a step costs at least."""

    def model(flips: Tensor) -> None:
        fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("flips", len(flips)):
            pyro.sample("flip", dist.Bernoulli(fairness), obs=flips)

    def guide(flips: Tensor) -> None:
        heads = pyro.param("heads", torch.tensor(15.0), constraint=constraints.positive)
        tails = pyro.param("tails", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("fairness", dist.Beta(heads, tails))

    return Workload(model, guide, (torch.tensor([1.0] * 6 + [0.0] * 4),))


def vae() -> Workload:
    """A variational autoencoder of digits: 64 pixels, 64 hidden units, 10 latent dimensions, batches of 128."""
    return _vae(hidden=64)


def wide_vae() -> Workload:
    """The same with 400 hidden units: most of the time goes into matrix products, which are the same everywhere."""
    return _vae(hidden=400)


def _vae(hidden: int) -> Workload:
    encoder = _Encoder(latent=10, hidden=hidden)
    decoder = nn.Sequential(nn.Linear(10, hidden), nn.Softplus(), nn.Linear(hidden, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 10), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return Workload(model, guide, (_digits(128),))


def sigmoid_belief_net() -> Workload:
    """Two binary layers of 32 and 64 units over digits, batches of 128; a neural baseline for each layer (NVIL)."""
    top_logits = nn.Parameter(torch.zeros(32))
    bottom_given_top, pixels_given_bottom = nn.Linear(32, 64), nn.Linear(64, PIXELS)
    bottom_given_pixels, top_given_bottom = _mlp(PIXELS, 64), _mlp(64, 32)
    bottom_baseline, top_baseline = _Baseline(PIXELS), _Baseline(64)

    def model(x: Tensor) -> None:
        pyro.module("bottom_given_top", bottom_given_top)
        pyro.module("pixels_given_bottom", pixels_given_bottom)
        prior = pyro.param("top_logits", top_logits)
        with pyro.plate("images", len(x)):
            top = pyro.sample("top", dist.Bernoulli(logits=prior.expand(len(x), -1)).to_event(1))
            bottom = pyro.sample("bottom", dist.Bernoulli(logits=bottom_given_top(top)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=pixels_given_bottom(bottom)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("bottom_given_pixels", bottom_given_pixels)
        pyro.module("top_given_bottom", top_given_bottom)
        pyro.module("bottom_baseline", bottom_baseline)
        pyro.module("top_baseline", top_baseline)
        with pyro.plate("images", len(x)):
            bottom = pyro.sample(
                "bottom",
                dist.Bernoulli(logits=bottom_given_pixels(x)).to_event(1),
                infer={"baseline": {"nn_baseline": bottom_baseline, "nn_baseline_input": x}},
            )
            pyro.sample(
                "top",
                dist.Bernoulli(logits=top_given_bottom(bottom)).to_event(1),
                infer={"baseline": {"nn_baseline": top_baseline, "nn_baseline_input": bottom}},
            )

    return Workload(model, guide, (_digits(128),))


WORKLOADS = {
    "Beta-Bernoulli": beta_bernoulli,
    "VAE on digits": vae,
    "VAE on digits, wide": wide_vae,
    "sigmoid belief net, NVIL baselines": sigmoid_belief_net,
}


class _Encoder(nn.Module):
    """Pixels to the mean and standard deviation of z."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Softplus())
        self.loc = nn.Linear(hidden, latent)
        self.log_scale = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(x)
        return self.loc(hidden), self.log_scale(hidden).exp()


class _Baseline(nn.Module):
    """A prediction of each image's downstream cost."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = _mlp(inputs, 1)

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen).squeeze(-1)


def _mlp(inputs: int, outputs: int, hidden: int = 100) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def _digits(count: int) -> Tensor:
    return torch.tensor(load_digits().data[:count] >= 8, dtype=torch.float32)
