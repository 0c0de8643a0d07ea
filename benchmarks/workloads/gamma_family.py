"""Sparse gamma deep exponential family (Ranganath et al. 2015) of digits, as pixel counts 0 to 16.

Weights w_top [5, 15], w_middle [15, 30], w_bottom [30, 64] ~ Gamma(0.1, 0.3). For each image z_top ~ Gamma(0.1, 0.1),
z_middle ~ Gamma(0.1, 0.1 / (z_top w_top)), z_bottom likewise from z_middle, x ~ Poisson(z_bottom w_bottom). The guide
draws each of them from a Gamma of its own shape and mean.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.data import PIXELS, counts

WIDTHS = (5, 15, 30, PIXELS)
WEIGHTS, UNITS = ("w_top", "w_middle", "w_bottom"), ("z_top", "z_middle", "z_bottom")
Z_SHAPE, Z_RATE, W_SHAPE, W_RATE = 0.1, 0.1, 0.1, 0.3


class GammaFamily(Workload):
    """Three layers of gamma variables over digits as counts, 5, 15 and 30 wide; pathwise gradients of gammas."""

    def __init__(self, batch: int = 128) -> None:
        rng = np.random.default_rng(0)
        self.data = (counts(batch),)
        self.sizes = {name: (WIDTHS[i], WIDTHS[i + 1]) for i, name in enumerate(WEIGHTS)}
        self.sizes |= {name: (batch, WIDTHS[i]) for i, name in enumerate(UNITS)}
        self.values = {}
        for name, size in self.sizes.items():
            self.values[f"{name}.shape"] = rng.uniform(0.8, 1.2, size).astype(np.float32)
            self.values[f"{name}.mean"] = rng.uniform(0.5, 0.9, size).astype(np.float32)
        self.positive = dict.fromkeys(self.values, "softplus")

    def pyro(self) -> Program:
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def layer(name: str, mean: Tensor) -> Tensor:
            return pyro.sample(name, dist.Gamma(Z_SHAPE, Z_RATE / mean).to_event(1))

        def model(x: Tensor) -> None:
            top, middle, bottom = (
                pyro.sample(name, dist.Gamma(W_SHAPE, W_RATE).expand(self.sizes[name]).to_event(2)) for name in WEIGHTS
            )
            with pyro.plate("images", len(x)):
                z = layer("z_top", torch.ones(len(x), WIDTHS[0]))
                z = layer("z_middle", z @ top)
                z = layer("z_bottom", z @ middle)
                pyro.sample("x", dist.Poisson(z @ bottom).to_event(1), obs=x)

        def gamma(name: str) -> dist.Gamma:
            shape = pyro.param(f"{name}.shape", first[f"{name}.shape"], constraint=constraints.softplus_positive)
            mean = pyro.param(f"{name}.mean", first[f"{name}.mean"], constraint=constraints.softplus_positive)
            return dist.Gamma(shape, shape / mean)

        def guide(x: Tensor) -> None:
            for name in WEIGHTS:
                pyro.sample(name, gamma(name).to_event(2))
            with pyro.plate("images", len(x)):
                for name in UNITS:
                    pyro.sample(name, gamma(name).to_event(1))

        return model, guide

    def numpyro(self) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def layer(name, mean):  # type: ignore[no-untyped-def]
            return numpyro.sample(name, jdist.Gamma(Z_SHAPE, Z_RATE / mean).to_event(1))

        def model(x):  # type: ignore[no-untyped-def]
            top, middle, bottom = (
                numpyro.sample(name, jdist.Gamma(W_SHAPE, W_RATE).expand(self.sizes[name]).to_event(2))
                for name in WEIGHTS
            )
            with numpyro.plate("images", len(x)):
                z = layer("z_top", jnp.ones((len(x), WIDTHS[0])))
                z = layer("z_middle", z @ top)
                z = layer("z_bottom", z @ middle)
                numpyro.sample("x", jdist.Poisson(z @ bottom).to_event(1), obs=x)

        def param(name):  # type: ignore[no-untyped-def]
            constraint = jdist.constraints.softplus_positive
            return numpyro.param(name, jnp.asarray(self.values[name]), constraint=constraint)

        def gamma(name):  # type: ignore[no-untyped-def]
            shape, mean = param(f"{name}.shape"), param(f"{name}.mean")
            return jdist.Gamma(shape, shape / mean)

        def guide(x):  # type: ignore[no-untyped-def]
            for name in WEIGHTS:
                numpyro.sample(name, gamma(name).to_event(2))
            with numpyro.plate("images", len(x)):
                for name in UNITS:
                    numpyro.sample(name, gamma(name).to_event(1))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        names = [*WEIGHTS, *UNITS]
        params = self.constrain(params)
        shape = torch.cat([params[f"{name}.shape"].flatten() for name in names])
        mean = torch.cat([params[f"{name}.mean"].flatten() for name in names])
        rate = shape / mean
        drawn = (torch._standard_gamma(shape) / rate).clamp(min=torch.finfo(shape.dtype).tiny)  # type: ignore[attr-defined]
        log_q = shape * rate.log() + (shape - 1) * drawn.log() - rate * drawn - torch.lgamma(shape)

        pieces = drawn.split([params[f"{name}.mean"].numel() for name in names])
        value = {name: piece.view(self.sizes[name]) for name, piece in zip(names, pieces, strict=True)}
        all_weights, all_units = torch.cat(pieces[:3]), torch.cat(pieces[3:])
        means = [value["z_top"] @ value["w_top"], value["z_middle"] @ value["w_middle"]]
        rates = Z_RATE / torch.cat([torch.ones_like(value["z_top"]).flatten(), *(m.flatten() for m in means)])
        log_w = _log_gamma(W_SHAPE, torch.full_like(all_weights, W_RATE), all_weights)
        log_z = _log_gamma(Z_SHAPE, rates, all_units)
        intensity = value["z_bottom"] @ value["w_bottom"]
        log_x = x * intensity.log() - intensity - torch.lgamma(x + 1)
        loss = log_q.sum() - log_w.sum() - log_z.sum() - log_x.sum()
        return loss, loss


def _log_gamma(shape: float, rate: Tensor, value: Tensor) -> Tensor:
    return shape * rate.log() + (shape - 1) * value.log() - rate * value - float(torch.lgamma(torch.tensor(shape)))
