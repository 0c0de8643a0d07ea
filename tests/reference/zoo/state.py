"""Programs that change something besides gradients: buffers, hidden states, random masks."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import batchnorm
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


def encoded(encoder: nn.Module) -> Case:
    """A latent for each of four rows, whose guide is the encoder."""

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(z, 1.0).to_event(1), obs=data)

    def guide(data: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(encoder(data), positive("scale", 0.5)).to_event(1))

    return Case(model, guide, (torch.randn(4, 2),))


@entry("State", "BatchNorm in training mode, whose running averages change", inductor=True)
def batch_norm_training() -> Case:
    return encoded(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)))


@entry("State", "BatchNorm in evaluation mode, whose running averages do not change", inductor=True)
def batch_norm_evaluation() -> Case:
    encoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    encoder(torch.randn(8, 2))
    return encoded(encoder.eval())


@entry("State", "Dropout, which draws its mask between the sites", inductor=True)
def dropout() -> Case:
    return encoded(nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)))


@entry("State", "LayerNorm, GELU, an embedding of integers and a convolution")
def assorted_layers() -> Case:
    embed, conv = nn.Embedding(3, 2), nn.Conv1d(1, 2, 2)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2)
            self.layers = nn.ModuleDict({"embed": embed, "conv": conv})

        def forward(self, data: Tensor) -> Tensor:
            codes = (data[:, 0] > 0).long()
            hidden = self.layers["conv"](data.unsqueeze(1)).squeeze(-1)
            return nn.functional.gelu(self.norm(hidden + self.layers["embed"](codes)))

    return encoded(Encoder())


@entry("State", "A module with a buffer of its own that it counts its calls in, and scales by")
def counting_buffer() -> Case:
    class Warmup(nn.Module):
        steps: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, data: Tensor) -> Tensor:
            self.steps += 1
            return self.linear(data) * (self.steps / (1 + self.steps))

    return encoded(Warmup())


@entry("State", "A GRU that reads the data backwards into the guide's states")
def gru_encoder() -> Case:
    gru = nn.GRU(1, 3, batch_first=True)
    head = nn.Linear(3, 2)

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = torch.zeros(len(data))
            for t in range(data.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"obs_{t}", dist.Normal(z, 1.0), obs=data[:, t])

    def guide(data: Tensor) -> None:
        pyro.module("gru", gru)
        pyro.module("head", head)
        hidden, _ = gru(data.flip(1).unsqueeze(-1))
        loc, raw = head(hidden.flip(1)).unbind(-1)
        with pyro.plate("data", len(data)):
            for t in range(data.shape[1]):
                pyro.sample(f"z_{t}", dist.Normal(loc[:, t], raw[:, t].exp()))

    return Case(model, guide, (torch.randn(2, 3),))


@entry("State", "An LSTMCell stepped by hand, with discrete states between its steps")
def lstm_cell() -> Case:
    cell, head = nn.LSTMCell(2, 3), nn.Linear(3, 1)
    start = nn.Parameter(torch.zeros(3))

    def model(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            total = torch.zeros(len(data))
            for t in range(2):
                total = total + pyro.sample(f"on_{t}", dist.Bernoulli(0.3))
                pyro.sample(f"obs_{t}", dist.Normal(total, 1.0), obs=data[:, t])

    def guide(data: Tensor) -> None:
        pyro.module("cell", cell)
        pyro.module("head", head)
        h = c = start.expand(len(data), 3)
        on = torch.zeros(len(data))
        with pyro.plate("data", len(data)):
            for t in range(2):
                h, c = cell(torch.stack([data[:, t], on], -1), (h, c))
                on = pyro.sample(f"on_{t}", dist.Bernoulli(logits=head(h).squeeze(-1)))

    return Case(model, guide, (torch.randn(3, 2),))


@entry("State", "A flow with a batch-norm layer, in training mode")
def batch_norm_flow() -> Case:
    norm = batchnorm(2)

    def model(data: Tensor) -> None:
        pyro.module("norm", norm)
        flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [norm])
        with pyro.plate("data", len(data)):
            pyro.sample("obs", flow, obs=data)

    def guide(data: Tensor) -> None:
        pass

    return Case(model, guide, (torch.randn(4, 2),))


@entry("State", "A decaying average baseline, kept in the parameter store between calls", inductor=True)
def decaying_average() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.2))
        pyro.sample("z", dist.Bernoulli(logits=logit), infer={"baseline": {"use_decaying_avg_baseline": True}})

    return Case(model, guide, (torch.tensor([0.5, 0.9]),))
