"""Statements that are not plain samples: observations in part, factors, deterministic and auxiliary sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry


@entry("Terms", "pyro.factor in the model: a scalar, and a batch of them in a plate", inductor=True)
def factor_in_the_model() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("prior", -(z**2) * 0.1)
        with pyro.plate("data", len(data)):
            pyro.factor("fit", -((data - z) ** 2))

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), positive("scale", 0.5)))

    return Case(model, guide, (torch.tensor([0.3, 0.9]),))


@entry("Terms", "pyro.factor in the guide, with has_rsample True")
def factor_in_the_guide() -> Case:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.2))
        z = pyro.sample("z", dist.Normal(loc, positive("scale", 0.5)))
        pyro.factor("penalty", -((z - loc) ** 2), has_rsample=True)

    return Case(model, guide)


@entry("Terms", "pyro.factor in the guide, with has_rsample False")
def score_factor_in_the_guide() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.2))
        z = pyro.sample("z", dist.Bernoulli(logits=logit))
        pyro.factor("penalty", -logit * z, has_rsample=False)

    return Case(model, guide, (torch.tensor([0.3, 0.9]),))


@entry("Terms", "pyro.deterministic values, in plates and out, and one with an event_dim", inductor=True)
def deterministic_values() -> Case:
    def model(data: Tensor) -> None:
        log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        scale = pyro.deterministic("scale", log_scale.exp())
        basis = pyro.deterministic("basis", torch.stack([scale, scale**2]), event_dim=1)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = pyro.deterministic("mean", z * basis.sum())
            pyro.sample("obs", dist.Normal(mean, scale), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("log_scale", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.2))
        slope = pyro.param("slope", torch.tensor(0.7)).tanh()
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(slope * data, 0.5))

    return Case(model, guide, (torch.tensor([0.3, 0.9]),))


@entry("Terms", "An auxiliary guide site that the model does not have, with a Delta at the site it feeds")
def auxiliary_site() -> Case:
    def model() -> None:
        a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(a + b, 0.5), obs=torch.tensor(1.3))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor([0.1, 0.4]))
        tril = pyro.param("tril", torch.tensor([[0.5, 0.0], [0.2, 0.4]]))
        joint = dist.MultivariateNormal(loc, scale_tril=tril)
        both = pyro.sample("both", joint, infer={"is_auxiliary": True})
        pyro.sample("a", dist.Delta(both[0].exp(), log_density=-both[0]))
        pyro.sample("b", dist.Delta(both[1]))

    return Case(model, guide)


@entry("Terms", "A discrete auxiliary guide site: a mixture written out by hand")
def discrete_auxiliary_site() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(z.abs(), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.1, -0.1]))
        k = pyro.sample("k", dist.Categorical(logits=weights), infer={"is_auxiliary": True})
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        pyro.sample("z", dist.Normal(locs[k], positive("scale", 0.5)))

    return Case(model, guide, (torch.tensor([1.3, 0.9]),))


@entry("Terms", "Data observed in part by obs_mask: the rest are latents of the guide", inductor=True)
def partly_observed() -> Case:
    def model(data: Tensor, seen: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data, obs_mask=seen)

    def guide(data: Tensor, seen: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), 0.3))
        with pyro.plate("data", len(data)):
            pyro.sample("x_unobserved", dist.Normal(pyro.param("missing", torch.zeros(len(data))), 0.7))

    return Case(model, guide, (torch.tensor([0.3, 0.0, 1.2]), torch.tensor([True, False, True])))


@entry("Terms", "Discrete vectors observed in part by obs_mask, with a batch mask over an event")
def discrete_partly_observed() -> Case:
    seen = torch.tensor([True, False])

    def model(data: Tensor) -> None:
        prob = pyro.sample("prob", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Bernoulli(prob).expand([2, 3]).to_event(1), obs=data, obs_mask=seen)
            pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor([1.0, 2.0]))

    def guide(data: Tensor) -> None:
        pyro.sample("prob", dist.Beta(positive("a", 2.0), positive("b", 1.5)))
        logits = pyro.param("logits", torch.zeros(2, 3))
        with pyro.plate("rows", 2):
            pyro.sample("x_unobserved", dist.Bernoulli(logits=logits).to_event(1))

    return Case(model, guide, (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),))


@entry("Terms", "Observations that follow a latent: a site observed to be a value that was computed")
def computed_observation() -> Case:
    def model(data: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        centred = data - data.mean()
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(0.0, 1.0), obs=centred - shift)
            pyro.sample("exact", dist.Normal(data, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.4)), 0.5))

    return Case(model, guide, (torch.tensor([1.3, 0.9, 0.2]),))


@entry("Terms", "Masks on distributions: a tensor, a bool, and missing values by NanMasked")
def masked_distributions() -> Case:
    def model(data: Tensor, keep: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).mask(keep).to_event(1))
        pyro.sample("skipped", dist.Normal(z.sum(), 1.0).mask(False), obs=torch.tensor(100.0))
        with pyro.plate("data", 3):
            pyro.sample("obs", dist.Normal(z, 1.0).mask(keep), obs=data)
            holes = torch.where(keep, data, torch.tensor(float("nan")))
            pyro.sample("holes", dist.NanMaskedNormal(z, 1.0), obs=holes)

    def guide(data: Tensor, keep: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.1, 0.2, 0.3]))
        pyro.sample("z", dist.Normal(loc, positive("scale", 0.5)).mask(keep).to_event(1))

    return Case(model, guide, (torch.tensor([0.5, 0.7, 0.9]), torch.tensor([True, True, False])))


@entry("Terms", "Likelihoods that carry their own latents: a Gaussian HMM and a discrete HMM")
def marginalised_chains() -> Case:
    def model(data: Tensor) -> None:
        drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
        matrix = (0.9 + 0.05 * drift) * torch.eye(1)
        noise = dist.MultivariateNormal(torch.zeros(1), torch.eye(1))
        pyro.sample("smooth", dist.GaussianHMM(noise, matrix, noise, torch.eye(1), noise, duration=3), obs=data)
        stay = torch.stack([torch.stack([drift, -drift]), torch.stack([-drift, drift])])
        switch = dist.DiscreteHMM(torch.zeros(2), stay, dist.Normal(torch.tensor([-1.0, 1.0]), 1.0), duration=3)
        pyro.sample("switch", switch, obs=data.squeeze(-1))

    def guide(data: Tensor) -> None:
        pyro.sample("drift", dist.Normal(pyro.param("loc", torch.tensor(0.3)), positive("scale", 0.2)))

    return Case(model, guide, (torch.tensor([[0.5], [0.7], [-0.9]]),))
