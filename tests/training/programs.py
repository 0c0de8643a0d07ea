"""What the training tests train, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import sgc.infer
from tests.programs import local_switches

DATA = torch.tensor([0.3, -1.2, 0.8])
DECAYING = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.03)


def gaussian_model(data: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(loc, 0.5), obs=data)


def gaussian_guide(data: Tensor) -> None:
    pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.3))


GAUSSIAN = gaussian_model, gaussian_guide
"""Without discrete sites, and functions of a module, which can be pickled."""


def scaled_model(scale: Tensor) -> None:
    """Its loss is NaN where the argument is."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, scale, validate_args=False), obs=torch.tensor(1.0))


def scaled_guide(scale: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("p", torch.tensor(0.0)), 1.0))


SCALED = scaled_model, scaled_guide
ONE, NAN = torch.tensor(1.0), torch.tensor(float("nan"))


def fresh(optim: Any = adam, **options: Any) -> sgc.SVI:
    """An SVI at the start of everything: an empty store and a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    return make_svi(optim, **options)


def make_svi(optim: Any, *, backend: Any = "inductor", program: Any = None, **options: Any) -> sgc.SVI:
    """An SVI that draws eager Pyro's random numbers."""
    model, guide = program or local_switches(DECAYING)
    return sgc.SVI(model, guide, optim, sgc.infer.TraceGraph_ELBO(backend=backend, rng="torch", **options))


def train(
    optim: Any, steps: int, backend: Any, between: Callable[[sgc.SVI], None] | None = None
) -> tuple[list[float], dict[str, Tensor], sgc.SVI]:
    """Losses, final parameters and averages, and the SVI, of a run from a fixed seed and an empty store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    svi = make_svi(optim, backend=backend)
    losses = []
    for _ in range(steps):
        losses.append(svi.step(DATA))
        if between is not None:
            between(svi)
    return losses, values(), svi


def values() -> dict[str, Tensor]:
    """Everything in Pyro's store, unconstrained."""
    return {name: tensor.detach().clone() for name, tensor in pyro.get_param_store()._params.items()}


def is_compiled(svi: sgc.SVI, data: Tensor = DATA) -> bool:
    """Whether the next step is one compiled call."""
    from sgc.guards.base import Call

    return svi.stepper.ready(Call((data,), {})) is not None
