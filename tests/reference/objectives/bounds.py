"""Bounds of all particles together: ``RenyiELBO``, of order 0 the importance weighted one."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

from tests.reference.objectives.closed_forms import autoencoder, positive
from tests.reference.objectives.comparison import Comparisons, Trained
from tests.reference.objectives.summed_out import spread

COMPARISONS = Comparisons("Bounds of several particles: `RenyiELBO`")
add = COMPARISONS.add


@add("An importance weighted autoencoder: order 0, five particles side by side")
def importance_weighted_autoencoder() -> Trained:
    vae = autoencoder()
    options = {"alpha": 0.0, "num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}
    return Trained(vae.model, vae.guide, vae.args, "RenyiELBO", options)


@add("Logistic regression of minibatches, order 1/2")
def logistic_regression() -> Trained:
    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x), subsample_size=5) as chosen:
            pyro.sample("y", dist.Bernoulli(logits=x[chosen] @ weight + bias), obs=y[chosen])

    x = spread(8, 2)
    guide = AutoDiagonalNormal(model, init_scale=0.1)
    y = (x.sum(-1) > 0).to(x.dtype)
    return Trained(model, guide, (x, y), "RenyiELBO", {"alpha": 0.5, "num_particles": 3})


@add("Eight schools, order 2: a bound from above")
def eight_schools() -> Trained:
    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    start = {"mu": torch.tensor(4.0), "tau": torch.tensor(3.0), "eta": torch.zeros(8)}
    guide = AutoNormal(model, init_scale=0.1, init_loc_fn=lambda site: start[site["name"]])
    return Trained(model, guide, (y, sigma), "RenyiELBO", {"alpha": 2.0, "num_particles": 2})


@add("Gates that are drawn: score functions of one plate, order -1")
def gates_that_are_drawn() -> Trained:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", 0.3 * spread(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    return Trained(model, guide, (spread(4),), "RenyiELBO", {"alpha": -1.0, "num_particles": 4})


@add("A state space model with an amortised guide that reads the sequence backwards, order 0.2")
def state_space_model() -> Trained:
    network = nn.GRU(1, 3, batch_first=True)
    head = nn.Linear(4, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("sequences", len(y)):
            z = torch.zeros(len(y))
            for t in range(y.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, positive("drift", torch.tensor(0.7))))
                pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[:, t])

    def guide(y: Tensor) -> None:
        pyro.module("network", network)
        pyro.module("head", head)
        read = network(y.flip(1).unsqueeze(-1))[0].flip(1)
        with pyro.plate("sequences", len(y)):
            z = torch.zeros(len(y))
            for t in range(y.shape[1]):
                loc, log_scale = head(torch.cat([read[:, t], z.unsqueeze(-1)], -1)).unbind(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()))

    return Trained(model, guide, (spread(2, 3),), "RenyiELBO", {"alpha": 0.2, "num_particles": 2})
