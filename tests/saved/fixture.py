"""The loss that ``format_1.sgc`` was saved of."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import sgc

AVERAGE = {"baseline": {"use_decaying_avg_baseline": True}}
DATA = torch.tensor([0.25, -0.5, 1.25])


def model(data: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.25))
        pyro.sample("x", dist.Normal(loc + z, 0.5), obs=data)


def guide(data: Tensor) -> None:
    logits = pyro.param("logits", torch.tensor([0.5, -0.5, 0.25]))
    with pyro.plate("data", len(data)):
        pyro.sample("z", dist.Bernoulli(logits=logits), infer=AVERAGE)


def fixture() -> sgc.LossModule:
    """It, after one call with the seed 0."""
    pyro.clear_param_store()
    module = sgc.compile(model, guide, backend="eager")
    pyro.set_rng_seed(0)
    module(DATA).backward()
    return module


if __name__ == "__main__":
    loss = fixture()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.0, momentum=0.5)
    optimizer.step()
    sgc.save(loss, "format_1.sgc", optimizer=optimizer)
