"""A Gaussian mixture with priors (Pyro's tutorial, "Gaussian mixture model").

weights ~ Dirichlet(1/2), scale ~ LogNormal(0, 2), locs [4] ~ N(0, 10), z ~ Categorical(weights), x ~ N(locs[z],
scale). The guide has free parameters for each, and logits [1000, 4] for the assignments, where it has them.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from torch import Tensor

from benchmarks.problems.asked import ASKED, THREE_WAYS
from benchmarks.problems.base import Course, Judge, Problem
from benchmarks.workloads.base import Program

COMPONENTS = 4


class Mixture(Problem):
    title = "Gaussian mixture, 1000 points, 4 components"
    words = "Full batch. The ELBO is that with the assignments summed out, for each point."
    methods = THREE_WAYS
    course = Course(learning_rate=0.03, block=25, blocks=80, reference=-2.4756, fraction=0.98)
    nesting = 1
    judge = Judge("summed out", "TraceEnum_ELBO", 16)

    def __init__(self, quick: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.count = 100 if quick else 1000
        component = rng.choice(COMPONENTS, size=self.count, p=[0.4, 0.3, 0.2, 0.1])
        noise = 0.5 * rng.normal(size=self.count)
        self.data = (np.array([-4.0, -1.0, 1.5, 5.0])[component] + noise).astype(np.float32)
        self.minibatches = self.data[None]
        self.values = {
            "concentration": np.ones(COMPONENTS, np.float32),
            "scale_loc": np.zeros((), np.float32),
            "scale_scale": np.full((), 0.1, np.float32),
            "locs_loc": np.linspace(-2, 2, COMPONENTS, dtype=np.float32),
            "locs_scale": np.full(COMPONENTS, 0.1, np.float32),
            "logits": np.zeros((self.count, COMPONENTS), np.float32),
        }

    def pyro(self, variant: str) -> Program:
        of_model, of_guide = ASKED[variant]
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def model(seen: Tensor) -> None:
            weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(COMPONENTS)))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
            with pyro.plate("components", COMPONENTS):
                locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
            with pyro.plate("points", len(seen)):
                z = pyro.sample("z", dist.Categorical(weights), infer=of_model())
                pyro.sample("x", dist.Normal(Vindex(locs.unsqueeze(-2))[..., z], scale), obs=seen)

        def positive(name: str) -> Tensor:
            return pyro.param(name, first[name], constraint=constraints.positive)

        def guide(seen: Tensor) -> None:
            pyro.sample("weights", dist.Dirichlet(positive("concentration")))
            scale_loc = pyro.param("scale_loc", first["scale_loc"])
            pyro.sample("scale", dist.LogNormal(scale_loc, positive("scale_scale")))
            with pyro.plate("components", COMPONENTS):
                loc = pyro.param("locs_loc", first["locs_loc"])
                pyro.sample("locs", dist.Normal(loc, positive("locs_scale")))
            if of_guide is not None:
                logits = pyro.param("logits", first["logits"])
                with pyro.plate("points", len(seen)):
                    pyro.sample("z", dist.Categorical(logits=logits), infer=of_guide())

        return model, guide

    def numpyro(self, variant: str) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        of_model, of_guide = ASKED[variant]
        first = {name: jnp.asarray(value) for name, value in self.values.items()}

        def model(seen):  # type: ignore[no-untyped-def]
            weights = numpyro.sample("weights", jdist.Dirichlet(0.5 * jnp.ones(COMPONENTS)))
            scale = numpyro.sample("scale", jdist.LogNormal(0.0, 2.0))
            with numpyro.plate("components", COMPONENTS):
                locs = numpyro.sample("locs", jdist.Normal(0.0, 10.0))
            with numpyro.plate("points", len(seen)):
                z = numpyro.sample("z", jdist.Categorical(weights), infer=of_model())
                numpyro.sample("x", jdist.Normal(locs[z], scale), obs=seen)

        def positive(name):  # type: ignore[no-untyped-def]
            return numpyro.param(name, first[name], constraint=jdist.constraints.positive)

        def guide(seen):  # type: ignore[no-untyped-def]
            numpyro.sample("weights", jdist.Dirichlet(positive("concentration")))
            scale_loc = numpyro.param("scale_loc", first["scale_loc"])
            numpyro.sample("scale", jdist.LogNormal(scale_loc, positive("scale_scale")))
            with numpyro.plate("components", COMPONENTS):
                loc = numpyro.param("locs_loc", first["locs_loc"])
                numpyro.sample("locs", jdist.Normal(loc, positive("locs_scale")))
            if of_guide is not None:
                logits = numpyro.param("logits", first["logits"])
                with numpyro.plate("points", len(seen)):
                    numpyro.sample("z", jdist.Categorical(logits=logits), infer=of_guide())

        return model, guide
