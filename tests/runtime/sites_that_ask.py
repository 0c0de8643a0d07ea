"""A model, and guides whose sites ask for estimators, by ``infer`` or by the option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import sgc

DATA = torch.tensor([0.3, -0.8, 1.2])
AVERAGE = {"baseline": {"use_decaying_avg_baseline": True}}


class UnlistedBernoulli(dist.Bernoulli):
    """A Bernoulli whose values cannot be listed, so that ``"auto"`` has baselines alone to choose from."""

    has_enumerate_support = False


def model(data: Tensor) -> None:
    pyro.factor("far", torch.tensor(40.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(data)):
        z = pyro.sample("z_top", dist.Bernoulli(0.5))
        low = pyro.sample("z_low", dist.Bernoulli(0.3 + 0.3 * z))
        factor = 20 * low
        pyro.sample("x", dist.Normal(z + factor + w, 3.0), obs=data)


def guided(**infer: dict[str, Any]) -> Callable[[Tensor], None]:
    """A guide of which some sites ask for something themselves."""

    def guide(data: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5), infer=infer.get("w", {}))
        logits = pyro.param("logits", torch.tensor(0.1))
        with pyro.plate("rows", len(data)):
            for name in ("z_top", "z_low"):
                pyro.sample(name, UnlistedBernoulli(logits=logits), infer=infer.get(name, {}))

    return guide


def asked(estimators: dict[str, Any], guide: Callable[..., None] | None = None, **options: Any) -> sgc.LossModule:
    return sgc.compile(model, guide or guided(), backend="eager", estimators=estimators, **options).initialize(DATA)


def words(module: sgc.LossModule) -> dict[str, str]:
    """What each site has: its estimator, and its baseline."""
    graph = module.graph
    return {
        site: graph.estimator(site).value + (f" - {baseline.words()}" if (baseline := graph.baseline(site)) else "")
        for site in ("w", "z_top", "z_low")
    }


NONE, DECAYING, OTHERS = (
    "score function",
    "score function - decaying average (beta 0.9)",
    "score function - leave-one-out, the mean of the other 2 particles' costs",
)
