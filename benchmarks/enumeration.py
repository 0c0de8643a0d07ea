"""Steps with discrete sites that are summed out: sgc's ``TraceEnum_ELBO``, Pyro's, its Jit class, and NumPyro's.

python -m benchmarks.enumeration [--program NAME ...] [--system NAME ...]

NumPyro's needs ``funsor``. A step is loss, gradients and Adam's update, on one core; the systems take turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.distributions import constraints
from torch import Tensor

import sgc
import sgc.infer
from benchmarks.systems.base import LEARNING_RATE
from benchmarks.turns import Turns
from benchmarks.workloads.data import words

Case = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], int]
"""Model, guide, their arguments, and how deep plates are nested."""


def observed(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def no_guide(*args: Any) -> None:
    pass


def chain(steps: int, states: int) -> Case:
    """A hidden Markov model of one sequence, as an ordinary loop within ``pyro.markov``."""

    def model(seen: Tensor) -> None:
        transition = pyro.param("transition", torch.ones(states, states) + torch.eye(states), constraints.simplex)
        loc = pyro.param("loc", torch.linspace(-1, 1, states))
        z: Any = 0
        for t in pyro.markov(range(steps)):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=seen[t])

    return model, no_guide, (torch.tensor(observed(steps)),), 0


def chain_in_jax(steps: int, states: int, *, scanned: bool) -> tuple[Any, Any, tuple[Any, ...]]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as numpyro_dist
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import markov

    def parameters() -> tuple[Any, Any]:
        start = (jnp.ones((states, states)) + jnp.eye(states)) / (states + 1)
        transition = numpyro.param("transition", start, constraint=numpyro_dist.constraints.simplex)
        return transition, numpyro.param("loc", jnp.linspace(-1, 1, states))

    def unrolled(seen: Any) -> None:
        transition, loc = parameters()
        z: Any = 0
        for t in markov(range(steps)):
            z = numpyro.sample(f"z_{t}", numpyro_dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
            numpyro.sample(f"x_{t}", numpyro_dist.Normal(loc[z], 1.0), obs=seen[t])

    def scanning(seen: Any) -> None:
        transition, loc = parameters()

        def step(z: Any, x: Any) -> tuple[Any, None]:
            z = numpyro.sample("z", numpyro_dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
            numpyro.sample("x", numpyro_dist.Normal(loc[z], 1.0), obs=x)
            return z, None

        scan(step, 0, seen)

    return scanning if scanned else unrolled, no_guide, (jnp.asarray(observed(steps)),)


def mixture(points: int, components: int) -> Case:
    """A Gaussian mixture with priors, whose assignments are summed out (Pyro's tutorial, "Gaussian mixture model")."""

    def model(seen: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(components)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", components):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", points):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], scale), obs=seen)

    def guide(seen: Tensor) -> None:
        concentration = pyro.param("concentration", torch.ones(components), constraints.positive)
        pyro.sample("weights", dist.Dirichlet(concentration))
        pyro.sample(
            "scale",
            dist.LogNormal(
                pyro.param("m", torch.tensor(0.0)), pyro.param("s", torch.tensor(0.1), constraints.positive)
            ),
        )
        with pyro.plate("components", components):
            pyro.sample("locs", dist.Normal(pyro.param("loc", torch.linspace(-2, 2, components)), 0.1))

    return model, guide, (torch.tensor(observed(points)),), 1


def mixture_in_jax(points: int, components: int) -> tuple[Any, Any, tuple[Any, ...]]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as numpyro_dist

    def model(seen: Any) -> None:
        weights = numpyro.sample("weights", numpyro_dist.Dirichlet(0.5 * jnp.ones(components)))
        scale = numpyro.sample("scale", numpyro_dist.LogNormal(0.0, 2.0))
        with numpyro.plate("components", components):
            locs = numpyro.sample("locs", numpyro_dist.Normal(0.0, 10.0))
        with numpyro.plate("data", points):
            z = numpyro.sample("z", numpyro_dist.Categorical(weights), infer={"enumerate": "parallel"})
            numpyro.sample("x", numpyro_dist.Normal(locs[z], scale), obs=seen)

    def guide(seen: Any) -> None:
        positive = numpyro_dist.constraints.positive
        concentration = numpyro.param("concentration", jnp.ones(components), constraint=positive)
        numpyro.sample("weights", numpyro_dist.Dirichlet(concentration))
        spread = numpyro.param("s", 0.1, constraint=positive)
        numpyro.sample("scale", numpyro_dist.LogNormal(numpyro.param("m", 0.0), spread))
        with numpyro.plate("components", components):
            numpyro.sample("locs", numpyro_dist.Normal(numpyro.param("loc", jnp.linspace(-2, 2, components)), 0.1))

    return model, guide, (jnp.asarray(observed(points)),)


TOPICS, WORDS = 8, 64


def topics(documents: int, length: int) -> Case:
    """LDA whose assignments are summed out (Pyro's example ``lda``), with free parameters for each document."""

    def model(seen: Tensor) -> None:
        with pyro.plate("topics", TOPICS):
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.full((WORDS,), 0.5)))
        with pyro.plate("documents", documents):
            mixture = pyro.sample("mixture", dist.Dirichlet(torch.full((TOPICS,), 0.5)))
            with pyro.plate("words", length):
                z = pyro.sample("z", dist.Categorical(mixture), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(topic_words[z]), obs=seen)

    def guide(seen: Tensor) -> None:
        for_topics = pyro.param("for_topics", lambda: 1 + torch.rand(TOPICS, WORDS), constraints.positive)
        for_documents = pyro.param("for_documents", lambda: 1 + torch.rand(documents, TOPICS), constraints.positive)
        with pyro.plate("topics", TOPICS):
            pyro.sample("topic_words", dist.Dirichlet(for_topics))
        with pyro.plate("documents", documents):
            pyro.sample("mixture", dist.Dirichlet(for_documents))

    return model, guide, (torch.tensor(words(documents, length)),), 2


def topics_in_jax(documents: int, length: int) -> tuple[Any, Any, tuple[Any, ...]]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as numpyro_dist

    random = np.random.default_rng(0)

    def model(seen: Any) -> None:
        with numpyro.plate("topics", TOPICS):
            topic_words = numpyro.sample("topic_words", numpyro_dist.Dirichlet(jnp.full((WORDS,), 0.5)))
        with numpyro.plate("documents", documents):
            mixture = numpyro.sample("mixture", numpyro_dist.Dirichlet(jnp.full((TOPICS,), 0.5)))
            with numpyro.plate("words", length):
                z = numpyro.sample("z", numpyro_dist.Categorical(mixture), infer={"enumerate": "parallel"})
                numpyro.sample("word", numpyro_dist.Categorical(topic_words[z]), obs=seen)

    for_topics, for_documents = 1 + random.random((TOPICS, WORDS)), 1 + random.random((documents, TOPICS))

    def guide(seen: Any) -> None:
        positive = numpyro_dist.constraints.positive
        with numpyro.plate("topics", TOPICS):
            concentration = numpyro.param("for_topics", jnp.asarray(for_topics, jnp.float32), constraint=positive)
            numpyro.sample("topic_words", numpyro_dist.Dirichlet(concentration))
        with numpyro.plate("documents", documents):
            concentration = numpyro.param("for_documents", jnp.asarray(for_documents, jnp.float32), constraint=positive)
            numpyro.sample("mixture", numpyro_dist.Dirichlet(concentration))

    return model, guide, (jnp.asarray(words(documents, length)),)


IN_TORCH: dict[str, tuple[Callable[..., Case], tuple[int, ...]]] = {
    **{f"HMM, T = {steps}, K = {states}": (chain, (steps, states)) for states in (4, 16) for steps in (20, 50, 200)},
    "Gaussian mixture of 10,000": (mixture, (10_000, 3)),
    "LDA, 100 documents": (topics, (100, 64)),
}
IN_JAX: dict[Callable[..., Any], Callable[..., Any]] = {mixture: mixture_in_jax, topics: topics_in_jax}


def in_torch(program: str, system: str) -> Callable[[], Any]:
    """A step of Pyro's ``SVI``, or of sgc's."""
    make, sizes = IN_TORCH[program]
    model, guide, args, nesting = make(*sizes)
    pyro.set_rng_seed(0)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
    if system == "sgc":
        loss = sgc.infer.TraceEnum_ELBO(max_plate_nesting=nesting, backend="inductor", rng="fast", wait=True)
        svi: Any = sgc.SVI(model, guide, optimizer, loss)
    else:
        elbo = pyro.infer.TraceEnum_ELBO if system == "Pyro" else pyro.infer.JitTraceEnum_ELBO
        svi = pyro.infer.SVI(model, guide, optimizer, elbo(max_plate_nesting=nesting))
    for _ in range(3):
        svi.step(*args)
    return lambda: svi.step(*args)


def in_jax(program: str, system: str) -> Callable[[], Any]:
    """A jitted update of NumPyro's ``SVI``."""
    import jax
    import numpyro
    from numpyro.infer import TraceEnum_ELBO

    make, sizes = IN_TORCH[program]
    if make is chain:
        model, guide, args = chain_in_jax(*sizes, scanned=system == "NumPyro, scan")
    else:
        model, guide, args = IN_JAX[make](*sizes)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), TraceEnum_ELBO())
    state = [svi.init(jax.random.PRNGKey(0), *args)]
    update = jax.jit(svi.update)

    def step() -> float:
        state[0], loss = update(state[0], *args)
        return float(loss)

    for _ in range(3):
        step()
    return step


SYSTEMS: dict[str, Callable[[str, str], Callable[[], Any]]] = {
    "sgc": in_torch,
    "NumPyro": in_jax,
    "NumPyro, scan": in_jax,
    "Pyro": in_torch,
    "Pyro, Jit": in_torch,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--program", action="append", choices=list(IN_TORCH))
    parser.add_argument("--system", action="append", choices=list(SYSTEMS))
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a turn lasts")
    parser.add_argument("--rounds", type=int, default=5, help="how many turns each system takes")
    options = parser.parse_args()
    systems = options.system or list(SYSTEMS)
    print(f"sgc {sgc.__version__}, torch {torch.__version__}, one core; µs a step\n")
    print("| program | " + " | ".join(systems) + " |\n| --- |" + " ---: |" * len(systems))
    for program in options.program or IN_TORCH:
        cells = []
        chosen = [system for system in systems if system != "NumPyro, scan" or IN_TORCH[program][0] is chain]
        running = {system: Turns(SYSTEMS[system], program, system) for system in chosen}
        times: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        for _ in range(options.rounds):
            for system in [system for system in chosen if system not in failed]:
                try:
                    times.setdefault(system, []).append(running[system].take(options.seconds))
                except RuntimeError as error:
                    failed[system] = str(error).partition(":")[0]
        for system in systems:
            if system in failed or system not in chosen:
                cells.append(failed.get(system, ""))
                continue
            running[system].end()
            cells.append(f"{1e6 * statistics.median(times[system]):.0f}")
        print(f"| {program} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
