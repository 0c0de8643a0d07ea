"""Deep Markov model (Krishnan et al. 2017) of digits read row by row: 8 times, 8 binary pixels each.

z_t ~ N(loc, scale) of z_{t-1} by a gated transition: gate = sigmoid(mlp(z)), proposed = mlp(z), loc = (1 - gate) *
linear(z) + gate * proposed, scale = softplus(linear(relu(proposed))); x_t ~ Bernoulli(mlp(z_t)); z_0 = 0. The guide
runs an RNN backwards over the rows, h_t, and combines: c = (tanh(linear(z_{t-1})) + h_t) / 2, z_t ~ N(linear(c),
softplus(linear(c))).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.data import binary
from benchmarks.workloads.layers import dense, linear, load, log_bernoulli, mlp, numpyro_params, recurrent

TIMES, ROW, LATENT, HIDDEN = 8, 8, 8, 16


class DeepMarkov(Workload):
    """A deep Markov model of digits row by row, 8 times, 8 latent dimensions; the rows unrolled."""

    def __init__(self, batch: int = 64) -> None:
        rng = np.random.default_rng(0)
        self.data = (binary(batch).reshape(batch, TIMES, ROW),)
        self.values = mlp(rng, "transition.gate", LATENT, HIDDEN, LATENT)
        self.values |= mlp(rng, "transition.proposed", LATENT, HIDDEN, LATENT)
        self.values |= linear(rng, "transition.kept", LATENT, LATENT) | linear(rng, "transition.scale", LATENT, LATENT)
        self.values |= mlp(rng, "emitter", LATENT, HIDDEN, ROW) | recurrent(rng, "rows", ROW, HIDDEN)
        self.values |= linear(rng, "combiner.state", LATENT, HIDDEN)
        self.values |= linear(rng, "combiner.loc", HIDDEN, LATENT) | linear(rng, "combiner.scale", HIDDEN, LATENT)

    def pyro(self) -> Program:
        transition = load(_Transition(), self.values, "transition")
        combiner = load(_Combiner(), self.values, "combiner")
        layers = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, ROW))
        emitter = load(layers, self.values, "emitter")
        rows = load(nn.RNNCell(ROW, HIDDEN), self.values, "rows")

        def model(x: Tensor) -> None:
            pyro.module("transition", transition)
            pyro.module("emitter", emitter)
            z = x.new_zeros(len(x), LATENT)
            with pyro.plate("sequences", len(x)):
                for t in range(TIMES):
                    z = pyro.sample(f"z_{t}", dist.Normal(*transition(z)).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=emitter(z)).to_event(1), obs=x[:, t])

        def guide(x: Tensor) -> None:
            pyro.module("rows", rows)
            pyro.module("combiner", combiner)
            seen = [x.new_zeros(len(x), HIDDEN)]
            for t in reversed(range(TIMES)):
                seen.append(rows(x[:, t], seen[-1]))
            z = x.new_zeros(len(x), LATENT)
            with pyro.plate("sequences", len(x)):
                for t in range(TIMES):
                    z = pyro.sample(f"z_{t}", dist.Normal(*combiner(z, seen[TIMES - t])).to_event(1))

        return model, guide

    def numpyro(self) -> Program:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def two_layers(p, name, z):  # type: ignore[no-untyped-def]
            return dense(p, f"{name}.2", jax.nn.relu(dense(p, f"{name}.0", z)))

        def transition(p, z):  # type: ignore[no-untyped-def]
            gate = jax.nn.sigmoid(two_layers(p, "transition.gate", z))
            proposed = two_layers(p, "transition.proposed", z)
            loc = (1 - gate) * dense(p, "transition.kept", z) + gate * proposed
            return loc, jax.nn.softplus(dense(p, "transition.scale", jax.nn.relu(proposed)))

        def model(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "transition", "emitter")
            z = jnp.zeros((len(x), LATENT))
            with numpyro.plate("sequences", len(x)):
                for t in range(TIMES):
                    z = numpyro.sample(f"z_{t}", jdist.Normal(*transition(p, z)).to_event(1))
                    logits = two_layers(p, "emitter", z)
                    numpyro.sample(f"x_{t}", jdist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])

        def guide(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "rows", "combiner")
            seen = [jnp.zeros((len(x), HIDDEN))]
            for t in reversed(range(TIMES)):
                of_input = x[:, t] @ p["rows.weight_ih"].T + p["rows.bias_ih"]
                seen.append(jnp.tanh(of_input + seen[-1] @ p["rows.weight_hh"].T + p["rows.bias_hh"]))
            z = jnp.zeros((len(x), LATENT))
            with numpyro.plate("sequences", len(x)):
                for t in range(TIMES):
                    both = 0.5 * (jnp.tanh(dense(p, "combiner.state", z)) + seen[TIMES - t])
                    scale = jax.nn.softplus(dense(p, "combiner.scale", both))
                    z = numpyro.sample(f"z_{t}", jdist.Normal(dense(p, "combiner.loc", both), scale).to_event(1))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        # Only what is sequential is a loop: the RNN and the guide's draws. The model takes all times at once.
        rows_first = x.transpose(0, 1)  # [time, sequence, pixel]
        of_input = rows_first @ params["rows.weight_ih"].T + params["rows.bias_ih"] + params["rows.bias_hh"]
        seen = [torch.tanh(of_input[TIMES - 1])]
        for t in reversed(range(TIMES - 1)):
            seen.append(torch.tanh(of_input[t] + seen[-1] @ params["rows.weight_hh"].T))
        noise = torch.randn(TIMES, len(x), LATENT, device=x.device)
        weight = torch.cat([params["combiner.loc.weight"], params["combiner.scale.weight"]]).T
        bias = torch.cat([params["combiner.loc.bias"], params["combiner.scale.bias"]])
        states, scales = [x.new_zeros(len(x), LATENT)], []
        for t in range(TIMES):
            both = 0.5 * (torch.tanh(dense(params, "combiner.state", states[-1])) + seen[TIMES - 1 - t])
            loc, raw_scale = (both @ weight + bias).chunk(2, -1)
            scales.append(F.softplus(raw_scale))
            states.append(loc + scales[-1] * noise[t])
        z, before = torch.stack(states[1:]), torch.stack(states[:-1])
        loc, scale = _transition(params, before)
        # log q(z) - log p(z); the two normalisers cancel
        divergence = 0.5 * (((z - loc) / scale).square() - noise.square()) + scale.log() - torch.stack(scales).log()
        logits = _two_layers(params, "emitter", z)
        loss = divergence.sum() - log_bernoulli(logits, rows_first).sum()
        return loss, loss


class _Transition(nn.Module):
    """The mean and standard deviation of the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LATENT))
        self.proposed = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LATENT))
        self.kept = nn.Linear(LATENT, LATENT)
        self.scale = nn.Linear(LATENT, LATENT)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gate, proposed = torch.sigmoid(self.gate(z)), self.proposed(z)
        return (1 - gate) * self.kept(z) + gate * proposed, F.softplus(self.scale(F.relu(proposed)))


class _Combiner(nn.Module):
    """The mean and standard deviation of a state, from the one before and the rows from its time on."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Linear(LATENT, HIDDEN)
        self.loc = nn.Linear(HIDDEN, LATENT)
        self.scale = nn.Linear(HIDDEN, LATENT)

    def forward(self, z: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        both = 0.5 * (torch.tanh(self.state(z)) + seen)
        return self.loc(both), F.softplus(self.scale(both))


def _two_layers(params: dict[str, Tensor], name: str, z: Tensor) -> Tensor:
    return dense(params, f"{name}.2", F.relu(dense(params, f"{name}.0", z)))


def _transition(params: dict[str, Any], z: Tensor) -> tuple[Tensor, Tensor]:
    gate, proposed = (
        torch.sigmoid(_two_layers(params, "transition.gate", z)),
        _two_layers(params, "transition.proposed", z),
    )
    loc = (1 - gate) * dense(params, "transition.kept", z) + gate * proposed
    return loc, F.softplus(dense(params, "transition.scale", F.relu(proposed)))
