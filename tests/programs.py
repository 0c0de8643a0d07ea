"""Small programs that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def local_switches(infer: dict[str, Any] | None = None) -> Pair:
    """A Bernoulli switch for each datum, and a global Gaussian; one parameter each."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(loc + z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor(0.1)), 0.3))
        q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(q), infer=infer or {})

    return model, guide


def switches_on(where: torch.device | None = None) -> Pair:
    """A switch for each datum, with a decaying-average baseline, on a device or on that of the data."""

    def model(x: Tensor) -> None:
        on = where or x.device
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), device=on), 1.0))
        with pyro.plate("data", x.shape[0], device=on):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, device=on)))
            pyro.sample("x", dist.Normal(loc + z, 0.5), obs=x.to(on))

    def guide(x: Tensor) -> None:
        on = where or x.device
        pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor(0.1, device=on)), 0.3))
        q = pyro.param("q", torch.full((3,), 0.3, device=on), constraint=constraints.unit_interval)
        with pyro.plate("data", x.shape[0], device=on):
            pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})

    return model, guide


def discrete_chain(length: int) -> Pair:
    """A chain of Bernoulli sites in model and guide, each with an observation."""

    def model() -> None:
        z = torch.tensor(0.0)
        for t in range(length):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(logits=z - 0.5))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(length))
        z = torch.tensor(0.0)
        for t in range(length):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(logits=logits[t] + z))

    return model, guide


def model_reading(read: Callable[[], Any]) -> Callable[[], None]:
    """A Bernoulli switch, and an observation around the switch and what ``read`` gives to Python."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + read(), 1.0), obs=torch.tensor(0.3))

    return model


def switch_guide() -> None:
    """The guide of one Bernoulli switch."""
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.1))))


def asserting_model(limit: Tensor) -> None:
    """Asserts something of a sample (here, not in a test file, where pytest rewrites assertions)."""
    z = pyro.sample("z", dist.Bernoulli(0.5))
    assert (z <= limit).all()
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))
