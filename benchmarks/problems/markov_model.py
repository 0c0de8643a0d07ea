"""A hidden Markov model of 64 sequences of 10 numbers, 4 states.

z_0 ~ Categorical(start), z_t ~ Categorical(transition[z_{t-1}]), x_t ~ N(locs[z_t], scale), all of them parameters.
The guide's z_t ~ Categorical(bridge[z_{t-1}] + ahead_t) with ahead [10, 64, 4]: the exact posterior is such a chain.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from benchmarks.problems.asked import ASKED, THREE_WAYS
from benchmarks.problems.base import Course, Judge, Problem
from benchmarks.workloads.base import Program

STATES = 4


class MarkovModel(Problem):
    title = "Hidden Markov model, 64 sequences of 10 numbers, 4 states"
    words = "Full batch. The ELBO is that with the states summed out: the log likelihood, for each sequence."
    methods = THREE_WAYS
    course = Course(learning_rate=0.1, block=20, blocks=50, reference=-15.4525, fraction=0.95)
    nesting = 1
    judge = Judge("summed out", "TraceEnum_ELBO", 1)

    def __init__(self, quick: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.steps, self.count = (3, 8) if quick else (10, 64)
        state = rng.integers(STATES, size=self.count)
        states = [state]
        for _ in range(self.steps - 1):
            moves = rng.random(self.count) < 0.2
            states.append(np.where(moves, (states[-1] + 1) % STATES, states[-1]))
        noise = 0.7 * rng.normal(size=(self.steps, self.count))
        self.data = (np.array([-3.0, -1.0, 1.0, 3.0])[np.stack(states)] + noise).astype(np.float32)
        self.minibatches = self.data[None]
        self.values = {
            "start": np.zeros(STATES, np.float32),
            "transition": np.eye(STATES, dtype=np.float32),
            "locs": np.linspace(-1, 1, STATES, dtype=np.float32),
            "scale": np.full((), 1.0, np.float32),
            "bridge": np.eye(STATES, dtype=np.float32),
            "ahead": np.zeros((self.steps, self.count, STATES), np.float32),
        }

    def pyro(self, variant: str) -> Program:
        of_model, of_guide = ASKED[variant]
        first = {name: torch.tensor(value) for name, value in self.values.items()}

        def model(seen: Tensor) -> None:
            start, transition = pyro.param("start", first["start"]), pyro.param("transition", first["transition"])
            locs = pyro.param("locs", first["locs"])
            scale = pyro.param("scale", first["scale"], constraint=constraints.positive)
            z = None
            with pyro.plate("sequences", seen.shape[1]):
                for t in pyro.markov(range(self.steps)):
                    logits = start if z is None else transition[z]
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits), infer=of_model())
                    pyro.sample(f"x_{t}", dist.Normal(locs[z], scale), obs=seen[t])

        def guide(seen: Tensor) -> None:
            if of_guide is None:
                return
            bridge, ahead = pyro.param("bridge", first["bridge"]), pyro.param("ahead", first["ahead"])
            z = None
            with pyro.plate("sequences", seen.shape[1]):
                for t in pyro.markov(range(self.steps)):
                    logits = ahead[t] if z is None else bridge[z] + ahead[t]
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits), infer=of_guide())

        return model, guide

    def numpyro(self, variant: str) -> Program:
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as jdist

        of_model, of_guide = ASKED[variant]
        first = {name: jnp.asarray(value) for name, value in self.values.items()}
        times = range(self.steps)
        if "drawn" not in variant:
            from numpyro.contrib.funsor import markov

            def each_time():  # type: ignore[no-untyped-def]
                return markov(times)
        else:

            def each_time():  # type: ignore[no-untyped-def]
                return times

        def model(seen):  # type: ignore[no-untyped-def]
            start, transition = (numpyro.param(name, first[name]) for name in ("start", "transition"))
            locs = numpyro.param("locs", first["locs"])
            scale = numpyro.param("scale", first["scale"], constraint=jdist.constraints.positive)
            z = None
            with numpyro.plate("sequences", seen.shape[1]):
                for t in each_time():
                    logits = start if z is None else transition[z]
                    z = numpyro.sample(f"z_{t}", jdist.Categorical(logits=logits), infer=of_model())
                    numpyro.sample(f"x_{t}", jdist.Normal(locs[z], scale), obs=seen[t])

        def guide(seen):  # type: ignore[no-untyped-def]
            if of_guide is None:
                return
            bridge, ahead = (numpyro.param(name, first[name]) for name in ("bridge", "ahead"))
            z = None
            with numpyro.plate("sequences", seen.shape[1]):
                for t in each_time():
                    logits = ahead[t] if z is None else bridge[z] + ahead[t]
                    z = numpyro.sample(f"z_{t}", jdist.Categorical(logits=logits), infer=of_guide())

        return model, guide
