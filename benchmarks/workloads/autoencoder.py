"""Variational autoencoder (Kingma & Welling 2014): z ~ N(0, 1), x ~ Bernoulli(decoder(z)); guide z ~ N(encoder(x)).

64 black or white pixels, 10 latent dimensions, one hidden layer with softplus.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads.base import Program, Workload
from benchmarks.workloads.data import PIXELS, binary
from benchmarks.workloads.layers import dense, linear, load, log_bernoulli, mlp, numpyro_params

LATENT = 10


class Autoencoder(Workload):
    """A variational autoencoder of digits."""

    def __init__(self, hidden: int = 64, batch: int = 128) -> None:
        rng = np.random.default_rng(0)
        self.hidden = hidden
        self.data = (binary(batch),)
        self.values = mlp(rng, "decoder", LATENT, hidden, PIXELS) | linear(rng, "encoder.hidden", PIXELS, hidden)
        self.values |= linear(rng, "encoder.loc", hidden, LATENT) | linear(rng, "encoder.log_scale", hidden, LATENT)

    def pyro(self) -> Program:
        encoder = load(_Encoder(self.hidden), self.values, "encoder")
        layers = nn.Sequential(nn.Linear(LATENT, self.hidden), nn.Softplus(), nn.Linear(self.hidden, PIXELS))
        decoder = load(layers, self.values, "decoder")

        def model(x: Tensor) -> None:
            pyro.module("decoder", decoder)
            with pyro.plate("images", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENT), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            pyro.module("encoder", encoder)
            with pyro.plate("images", len(x)):
                pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

        return model, guide

    def numpyro(self) -> Program:
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        def model(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "decoder")
            with numpyro.plate("images", len(x)):
                z = numpyro.sample("z", jdist.Normal(jnp.zeros((len(x), LATENT)), 1.0).to_event(1))
                logits = dense(p, "decoder.2", jax.nn.softplus(dense(p, "decoder.0", z)))
                numpyro.sample("x", jdist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x):  # type: ignore[no-untyped-def]
            p = numpyro_params(self.values, "encoder")
            hidden = jax.nn.softplus(dense(p, "encoder.hidden", x))
            loc, scale = dense(p, "encoder.loc", hidden), jnp.exp(dense(p, "encoder.log_scale", hidden))
            with numpyro.plate("images", len(x)):
                numpyro.sample("z", jdist.Normal(loc, scale).to_event(1))

        return model, guide

    def by_hand(self, params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(dense(params, "encoder.hidden", x))
        loc, log_scale = dense(params, "encoder.loc", hidden), dense(params, "encoder.log_scale", hidden)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        logits = dense(params, "decoder.2", F.softplus(dense(params, "decoder.0", z)))
        divergence = 0.5 * (z * z - noise * noise) - log_scale  # log q(z) - log p(z)
        loss = divergence.sum() - log_bernoulli(logits, x).sum()
        return loss, loss


class _Encoder(nn.Module):
    """Pixels to the mean and standard deviation of z."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, hidden)
        self.loc = nn.Linear(hidden, LATENT)
        self.log_scale = nn.Linear(hidden, LATENT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(self.hidden(x))
        return self.loc(hidden), self.log_scale(hidden).exp()
