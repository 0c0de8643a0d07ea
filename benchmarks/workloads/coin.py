"""Beta-Bernoulli: p ~ Beta(10, 10), ten flips ~ Bernoulli(p); guide p ~ Beta(heads, tails)."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.workloads.base import Program, Workload


class BetaBernoulli(Workload):
    """A coin flipped 10 times: almost no arithmetic, hence a measure of what a step costs at least."""

    def __init__(self) -> None:
        self.data = (np.array([1.0] * 6 + [0.0] * 4, np.float32),)
        self.values = {"heads": np.float32(15.0), "tails": np.float32(15.0)}
        self.positive = {"heads": "exp", "tails": "exp"}

    def pyro(self) -> Program:
        def model(flips: Tensor) -> None:
            fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
            with pyro.plate("flips", len(flips)):
                pyro.sample("flip", dist.Bernoulli(fairness), obs=flips)

        def guide(flips: Tensor) -> None:
            heads = pyro.param("heads", torch.tensor(15.0), constraint=constraints.positive)
            tails = pyro.param("tails", torch.tensor(15.0), constraint=constraints.positive)
            pyro.sample("fairness", dist.Beta(heads, tails))

        return model, guide

    def numpyro(self) -> Program:
        import numpyro
        import numpyro.distributions as jdist

        def model(flips):  # type: ignore[no-untyped-def]
            fairness = numpyro.sample("fairness", jdist.Beta(10.0, 10.0))
            with numpyro.plate("flips", len(flips)):
                numpyro.sample("flip", jdist.Bernoulli(fairness), obs=flips)

        def guide(flips):  # type: ignore[no-untyped-def]
            heads = numpyro.param("heads", 15.0, constraint=jdist.constraints.positive)
            tails = numpyro.param("tails", 15.0, constraint=jdist.constraints.positive)
            numpyro.sample("fairness", jdist.Beta(heads, tails))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], flips: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.constrain(params).values()
        p = torch.distributions.Beta(a, b, validate_args=False).rsample()
        log_p, log_not = p.log(), torch.log1p(-p)
        likelihood = (flips * log_p + (1 - flips) * log_not).sum()
        ten = torch.full_like(a, 10.0)
        loss = _log_beta(a, b, log_p, log_not) - _log_beta(ten, ten, log_p, log_not) - likelihood
        return loss, loss


def _log_beta(a: Tensor, b: Tensor, log_p: Tensor, log_not: Tensor) -> Tensor:
    normaliser = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    return (a - 1) * log_p + (b - 1) * log_not + normaliser
