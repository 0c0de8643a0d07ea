"""Two hidden Markov chains, written as programs that unroll: one statement for each time.

Gaussian: z_t ~ N(z_{t-1}, 1), x_t ~ N(z_t, 1); guide z_t ~ N(loc_t, scale_t).
Discrete, 4 states: z_t ~ Categorical(transition[z_{t-1}]), x_t ~ N(locs[z_t], 1), z_0 = 0; guide z_t ~
Categorical(logits_t[z_{t-1}]), so that the downstream costs of z_t are all costs from t on.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.layers import draw_categorical

STATES = 4
LOG_2PI = math.log(2 * math.pi)


class GaussianChain(Workload):
    """A Gaussian random walk seen with noise, unrolled; pathwise gradients."""

    def __init__(self, steps: int = 20) -> None:
        rng = np.random.default_rng(0)
        self.steps = steps
        self.data = ((rng.normal(size=steps).cumsum() + rng.normal(size=steps)).astype(np.float32),)
        self.values = {"loc": np.zeros(steps, np.float32), "scale": np.full(steps, 0.5, np.float32)}
        self.positive = {"scale": "exp"}

    def pyro(self) -> Program:
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def model(x: Tensor) -> None:
            z = torch.tensor(0.0)
            for t in range(self.steps):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

        def guide(x: Tensor) -> None:
            loc = pyro.param("loc", first["loc"])
            scale = pyro.param("scale", first["scale"], constraint=constraints.positive)
            for t in range(self.steps):
                pyro.sample(f"z_{t}", dist.Normal(loc[t], scale[t]))

        return model, guide

    def numpyro(self) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def model(x):  # type: ignore[no-untyped-def]
            z = 0.0
            for t in range(self.steps):
                z = numpyro.sample(f"z_{t}", jdist.Normal(z, 1.0))
                numpyro.sample(f"x_{t}", jdist.Normal(z, 1.0), obs=x[t])

        def guide(x):  # type: ignore[no-untyped-def]
            loc = numpyro.param("loc", jnp.asarray(self.values["loc"]))
            positive = jdist.constraints.positive
            scale = numpyro.param("scale", jnp.asarray(self.values["scale"]), constraint=positive)
            for t in range(self.steps):
                numpyro.sample(f"z_{t}", jdist.Normal(loc[t], scale[t]))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = params["loc"], params["scale"]
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        moves = z - torch.cat([z.new_zeros(1), z[:-1]])
        squares = moves.square() + (x - z).square() - noise.square()
        loss = (0.5 * squares - log_scale).sum() + 0.5 * self.steps * LOG_2PI
        return loss, loss


class DiscreteChain(Workload):
    """A hidden Markov model of 4 states, unrolled and not enumerated; score-function gradients."""

    discrete = True

    def __init__(self, steps: int = 20) -> None:
        rng = np.random.default_rng(0)
        self.steps = steps
        self.data = (rng.normal(scale=2.0, size=steps).astype(np.float32),)
        self.values = {
            "transition": (0.5 * rng.normal(size=(STATES, STATES))).astype(np.float32),
            "locs": np.linspace(-2, 2, STATES).astype(np.float32),
            "logits": (0.5 * rng.normal(size=(steps, STATES, STATES))).astype(np.float32),
        }

    def pyro(self) -> Program:
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def model(x: Tensor) -> None:
            transition, locs = pyro.param("transition", first["transition"]), pyro.param("locs", first["locs"])
            z = torch.tensor(0)
            for t in range(self.steps):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=transition[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

        def guide(x: Tensor) -> None:
            logits = pyro.param("logits", first["logits"])
            z = torch.tensor(0)
            for t in range(self.steps):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits[t][z]))

        return model, guide

    def numpyro(self) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def param(name):  # type: ignore[no-untyped-def]
            return numpyro.param(name, jnp.asarray(self.values[name]))

        def model(x):  # type: ignore[no-untyped-def]
            transition, locs = param("transition"), param("locs")
            z = 0
            for t in range(self.steps):
                z = numpyro.sample(f"z_{t}", jdist.Categorical(logits=transition[z]))
                numpyro.sample(f"x_{t}", jdist.Normal(locs[z], 1.0), obs=x[t])

        def guide(x):  # type: ignore[no-untyped-def]
            logits = param("logits")
            z = 0
            for t in range(self.steps):
                z = numpyro.sample(f"z_{t}", jdist.Categorical(logits=logits[t][z]))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        logits = params["logits"]
        times = torch.arange(self.steps, device=x.device)
        # Where each state would go at each time. Composed with those before, by doubling, they are the chain itself.
        paths = draw_categorical(logits)  # [time, state before]
        span = 1
        while span < self.steps:
            paths = torch.cat([paths[:span], paths[span:].gather(1, paths[:-span])])
            span *= 2
        z = paths[:, 0]
        before = torch.cat([z.new_zeros(1), z[:-1]])

        log_q = torch.log_softmax(logits, -1)[times, before, z]
        log_z = torch.log_softmax(params["transition"], -1)[before, z]
        log_x = -0.5 * ((x - params["locs"][z]).square() + LOG_2PI)
        costs = (log_z + log_x - log_q).detach()
        downstream = costs.flip(0).cumsum(0).flip(0)
        surrogate = (log_z + log_x + log_q * downstream).sum()
        return -costs.sum(), -surrogate
