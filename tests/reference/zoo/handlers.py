"""Effect handlers around and inside programs."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.reparam import (
    AutoReparam,
    LatentStableReparam,
    LocScaleReparam,
    ProjectedNormalReparam,
    StableReparam,
    TransformReparam,
)
from pyro.nn import PyroModule
from torch import Tensor, nn

from tests.reference.zoo.entry import Case, Collection
from tests.reference.zoo.sites import positive

ENTRIES = Collection()
entry = ENTRIES.entry

DATA = torch.tensor([0.4, -0.3, 1.2])


def chain(data: Tensor) -> None:
    """A model of two latents and a plate of observations, to be handled."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(b, 1.0), obs=data)


def chain_guide(data: Tensor) -> None:
    """The mean-field guide of ``chain``."""
    pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.tensor(0.1)), positive("a_scale", 0.5)))
    pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.tensor(0.2)), positive("b_scale", 0.6)))


@entry("Handlers", "poutine.scale: by a number, by a tensor per row, and of the whole program", inductor=True)
def scaled() -> Case:
    def model(data: Tensor) -> None:
        with poutine.scale(scale=0.5):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        with pyro.plate("data", len(data)), poutine.scale(scale=torch.tensor([1.0, 2.0, 0.5])):
            pyro.sample("obs", dist.Normal(a + b, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        with poutine.scale(scale=0.5):
            pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.1)), positive("scale", 0.5)))
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))

    return Case(poutine.scale(model, 0.1), poutine.scale(guide, 0.1), (DATA,))


@entry("Handlers", "An annealing factor that is an argument, given to poutine.scale", inductor=True)
def annealed() -> Case:
    def model(data: Tensor, annealing: float) -> None:
        with poutine.scale(scale=annealing):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=data)

    def guide(data: Tensor, annealing: float) -> None:
        with poutine.scale(scale=annealing):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    return Case(model, guide, (DATA,), {"annealing": 0.3})


@entry("Handlers", "poutine.mask with a tensor, with False, and nested", inductor=True)
def masked() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=False):
            pyro.sample("ignored", dist.Normal(z, 1.0), obs=torch.tensor(3.0))
        with pyro.plate("data", len(data)), poutine.mask(mask=torch.tensor([True, False, True])):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            with poutine.mask(mask=data > 0):
                pyro.sample("obs", dist.Normal(z + y, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))
        with pyro.plate("data", len(data)), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("y", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(3))))

    return Case(model, guide, (DATA,))


@entry("Handlers", "poutine.block: a site and a parameter that the outside does not see")
def blocked() -> Case:
    def model(data: Tensor) -> None:
        with poutine.block(hide=["noise"]):
            noise = pyro.sample("noise", dist.Normal(0.0, 0.1))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(a + noise, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        fixed = poutine.block(lambda: pyro.param("fixed", torch.tensor(0.3)))()
        pyro.sample("a", dist.Normal(fixed + pyro.param("loc", torch.tensor(0.1)), 0.4))

    return Case(model, poutine.block(guide, hide=["fixed"]), (DATA,))


@entry("Handlers", "poutine.condition: an unconditioned model, given its data", inductor=True)
def conditioned() -> Case:
    def prior(size: int) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            pyro.sample("obs", dist.Normal(a, 1.0))

    def guide(size: int) -> None:
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.1)), positive("scale", 0.5)))

    return Case(poutine.condition(prior, data={"obs": DATA}), guide, (len(DATA),))


@entry("Handlers", "poutine.uncondition and pyro.condition again: the data are replaced")
def unconditioned() -> Case:
    model = poutine.condition(poutine.uncondition(chain), data={"obs": 2 * DATA})
    return Case(model, chain_guide, (DATA,))


@entry("Handlers", "poutine.do: an intervention on a latent")
def intervened() -> Case:
    return Case(poutine.do(chain, data={"a": torch.tensor(1.5)}), chain_guide, (DATA,))


@entry("Handlers", "poutine.substitute and a trace and replay of one's own inside the model")
def replayed() -> Case:
    def inner() -> Tensor:
        return pyro.sample("inner", dist.Normal(pyro.param("inner_loc", torch.tensor(0.3)), 1.0))

    def model(data: Tensor) -> None:
        with poutine.block():
            trace = poutine.trace(inner).get_trace()
        value = poutine.replay(inner, trace=trace)()
        a = pyro.sample("a", dist.Normal(value, 1.0))
        scale = poutine.substitute(lambda: pyro.param("sub", torch.tensor(1.0)), {"sub": torch.tensor(0.8)})()
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(a, scale), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("inner", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.4))
        pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.tensor(0.2)), 0.5))

    return Case(model, guide, (DATA,))


@entry("Handlers", "poutine.lift: a model's parameters as random variables")
def lifted_parameters() -> Case:
    def likelihood(data: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, positive("scale", 1.0)), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.2)), positive("q_scale", 0.5)))

    return Case(poutine.lift(likelihood, prior={"loc": dist.Normal(0.0, 3.0)}), guide, (DATA,))


@entry("Handlers", "A network lifted in model and guide: a Bayesian module in the manner of random_module")
def lifted_module() -> Case:
    net = nn.Linear(1, 1)

    def model(x: Tensor, y: Tensor) -> None:
        priors = {
            "weight": dist.Normal(torch.zeros(1, 1), 1.0).to_event(2),
            "bias": dist.Normal(torch.zeros(1), 1.0).to_event(1),
        }
        sampled = poutine.lift(pyro.module, prior=priors)("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(sampled(x).squeeze(-1), 1.0), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        weight = pyro.param("weight_loc", torch.tensor([[0.5]]))
        pyro.sample("net$$$weight", dist.Normal(weight, 0.1).to_event(2))
        pyro.sample("net$$$bias", dist.Normal(pyro.param("bias_loc", torch.zeros(1)), 0.1).to_event(1))

    return Case(model, guide, (torch.tensor([[0.1], [0.9], [-0.4]]), DATA))


@entry("Handlers", "LocScaleReparam, with a learned centring, and TransformReparam", inductor=True)
def reparameterised() -> Case:
    def model(data: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("scale_base", dist.Normal(pyro.param("scale_loc", torch.tensor(0.1)), 0.2))
        with pyro.plate("data", len(data)):
            pyro.sample("z_decentered", dist.Normal(pyro.param("z_loc", torch.zeros(3)), 0.5))

    config = {"z": LocScaleReparam(), "scale": TransformReparam()}
    return Case(poutine.reparam(model, config=config), guide, (DATA,))


@entry("Handlers", "StableReparam and LatentStableReparam: a stable likelihood by auxiliary variables")
def stable_reparam() -> Case:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Stable(torch.tensor(1.8), torch.tensor(0.0)))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Stable(torch.tensor(1.7), torch.tensor(0.1), torch.tensor(1.0), z), obs=data)

    def guide(data: Tensor) -> None:
        half = math.pi / 2
        angle = dist.Uniform(-half, half)
        pyro.sample("z_uniform", angle)
        pyro.sample("z_exponential", dist.Exponential(positive("z_rate", 1.2)))
        with pyro.plate("data", len(data)):
            for part in ("z", "t"):
                pyro.sample(f"obs_{part}_uniform", angle)
                pyro.sample(f"obs_{part}_exponential", dist.Exponential(positive(f"{part}_obs_rate", 1.1)))

    config: dict[str, Any] = {"z": LatentStableReparam(), "obs": StableReparam()}
    return Case(poutine.reparam(model, config=config), guide, (DATA,))


@entry("Handlers", "AutoReparam on a hierarchy, and ProjectedNormalReparam on a direction")
def automatic_reparam() -> Case:
    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(loc, 2.0))
        direction = pyro.sample("direction", dist.ProjectedNormal(torch.zeros(2)))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(z * direction[0], 1.0), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("loc_decentered", dist.Normal(pyro.param("q_loc", torch.tensor(0.1)), 0.3))
        pyro.sample("z_decentered", dist.Normal(pyro.param("z_loc", torch.tensor(0.2)), 0.4))
        normal = dist.Normal(pyro.param("direction_loc", torch.ones(2)), 0.5).to_event(1)
        pyro.sample("direction_normal_decentered", normal)

    model = poutine.reparam(model, config={"direction": ProjectedNormalReparam()})
    return Case(poutine.reparam(model, config=AutoReparam(centered=None)), guide, (DATA,))


@entry("Handlers", "scope: a submodel that is used twice under two prefixes")
def scoped() -> Case:
    def cell(x: Tensor) -> Tensor:
        return pyro.sample("z", dist.Normal(x, 1.0))

    def model(data: Tensor) -> None:
        first = scope(cell, prefix="first")(torch.tensor(0.0))
        second = scope(cell, prefix="second")(first)
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(second, 1.0), obs=data)

    def guide(data: Tensor) -> None:
        for prefix in ("first", "second"):
            loc = pyro.param(f"{prefix}_loc", torch.tensor(0.2))
            pyro.sample(f"{prefix}/z", dist.Normal(loc, positive(f"{prefix}_scale", 0.4)))

    return Case(model, guide, (DATA,))


@entry("Handlers", "A handled PyroModule: conditioned and scaled")
def handled_module() -> Case:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(0.3))

        def forward(self) -> None:
            z = pyro.sample("z", dist.Bernoulli(logits=self.bias))
            pyro.sample("obs", dist.Normal(z + self.bias, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    return Case(poutine.scale(poutine.condition(Model(), data={"obs": torch.tensor(0.7)}), 0.5), guide)
