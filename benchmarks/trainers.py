"""The libraries as they train a problem: each takes a block of steps in the fastest way that it has."""

from __future__ import annotations

import itertools
import time
import warnings
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import numpy as np
import pyro
import torch

import sgc
import sgc.infer
from benchmarks.problems.base import Method, Problem
from benchmarks.workloads.base import Values


class Trainer(ABC):
    """Trains from the problem's first values, once or several times."""

    def __init__(self, problem: Problem, method: Method) -> None:
        self.problem = problem
        self.method = method

    @abstractmethod
    def prepare(self, learning_rate: float) -> None:
        """Make everything, and compile what is compiled, for Adam with this rate."""

    @abstractmethod
    def restart(self, seed: int, learning_rate: float) -> None:
        """From the first values, with a new optimizer and no averages; samples are drawn with this seed."""

    @abstractmethod
    def advance(self) -> float:
        """Take a block of steps, until the last is done; return the seconds that it took."""

    @abstractmethod
    def parameters(self) -> Values:
        """Constrained, named as in the problem's ``values``; those that are trained."""


class TorchTrainer(Trainer):
    """What sgc and Pyro have in common: the param store, the arguments."""

    def __init__(self, problem: Problem, method: Method) -> None:
        super().__init__(problem, method)
        self.arguments = [(torch.tensor(batch),) for batch in problem.minibatches]

    def from_the_first(self) -> None:
        """The next step takes the first minibatch, and is the first of a run."""
        self.following = itertools.cycle(self.arguments)
        self.untimed = 2  # what is bound or traced anew in them is part of the start, which is measured once

    @abstractmethod
    def take(self, steps: int) -> None:
        """Take steps."""

    def advance(self) -> float:
        """The first two steps of a run are taken before the clock starts, and count like the others of their block."""
        self.take(self.untimed)
        timed, block = self.problem.course.block - self.untimed, self.problem.course.block
        start = time.perf_counter()
        self.take(timed)
        self.untimed = 0
        return (time.perf_counter() - start) * block / timed

    def parameters(self) -> Values:
        trained = pyro.get_param_store().items()
        return {name.replace("$$$", "."): value.detach().numpy().copy() for name, value in trained}


class Compiled(TorchTrainer):
    """sgc: ``svi.run``. A restart loads the checkpoint of the start, and so compiles nothing."""

    def prepare(self, learning_rate: float) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        own = {} if self.method.estimators is None else {"estimators": {"*": self.method.estimators}}
        # But for ``wait`` and what the method asks for, this is the default of sgc.SVI.
        elbo = getattr(sgc.infer, self.method.objective)(
            backend="inductor", rng="fast", wait=True, **own, **self.problem.options(self.method)
        )
        model, guide = self.problem.pyro(self.method.variant)
        self.svi = sgc.SVI(model, guide, lambda parameters: torch.optim.Adam(parameters, lr=learning_rate), elbo)
        self.svi.initialize(*self.arguments[0])
        self.checkpoint = self.svi.state_dict()
        self.from_the_first()
        self.take(2)  # the first makes the optimizer's state, the second is compiled

    def restart(self, seed: int, learning_rate: float) -> None:
        for group in self.checkpoint["optimizer"]["param_groups"]:
            group["lr"] = learning_rate
        self.svi.load_state_dict(self.checkpoint)
        pyro.set_rng_seed(seed)
        self.from_the_first()

    def take(self, steps: int) -> None:
        if not steps:
            return
        if len(self.arguments) == 1:
            self.svi.run(steps, *self.arguments[0], progress_bar=False)
        else:
            self.svi.run(list(itertools.islice(self.following, steps)), epochs=1, progress_bar=False)


class Eager(TorchTrainer):
    """Pyro: ``svi.step``."""

    prefix = ""

    def prepare(self, learning_rate: float) -> None:
        self.restart(0, learning_rate)
        self.take(2)

    def restart(self, seed: int, learning_rate: float) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        elbo = getattr(pyro.infer, self.prefix + self.method.objective)(**self.problem.options(self.method))
        model, guide = self.problem.pyro(self.method.variant)
        self.svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": learning_rate}), elbo)
        self.from_the_first()

    def take(self, steps: int) -> None:
        for args in itertools.islice(self.following, steps):
            self.svi.step(*args)


class EagerJit(Eager):
    """Pyro's compiled classes. A restart traces anew, in the steps that are not timed."""

    prefix = "Jit"

    def prepare(self, learning_rate: float) -> None:
        warnings.filterwarnings("ignore")  # the tracer warns of each constant that it finds
        super().prepare(learning_rate)


class Jax(Trainer):
    """NumPyro: ``svi.update`` within ``lax.scan``, compiled once."""

    def __init__(self, problem: Problem, method: Method) -> None:
        super().__init__(problem, method)
        import_module("numpyro.infer")
        if method.objective == "TraceEnum_ELBO":
            import_module("numpyro.contrib.funsor")

    def prepare(self, learning_rate: float) -> None:
        import jax
        import numpyro
        import numpyro.infer

        particles = {} if self.method.particles == 1 else {"num_particles": self.method.particles}
        nesting = {"max_plate_nesting": self.problem.nesting} if self.method.objective == "TraceEnum_ELBO" else {}
        elbo = getattr(numpyro.infer, self.method.objective)(**particles, **nesting)
        model, guide = self.problem.numpyro(self.method.variant)
        self.svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(learning_rate), elbo)
        batches, block = jax.numpy.asarray(self.problem.minibatches), self.problem.course.block
        self.first = self.svi.init(jax.random.key(0), batches[0])

        def train(state: Any, taken: Any) -> Any:
            def body(state: Any, step: Any) -> Any:
                return self.svi.update(state, batches[step % len(batches)])

            state, losses = jax.lax.scan(body, state, taken + jax.numpy.arange(block))
            return state, losses.mean()

        self.compiled = jax.jit(train).lower(self.first, 0).compile()
        self.learning_rate = learning_rate

    def restart(self, seed: int, learning_rate: float) -> None:
        import jax

        if learning_rate != self.learning_rate:
            self.prepare(learning_rate)  # it is a constant of the compiled program
        self.state = self.first._replace(rng_key=jax.random.key(seed))
        self.taken = 0

    def advance(self) -> float:
        start = time.perf_counter()
        self.state, loss = self.compiled(self.state, self.taken)
        loss.block_until_ready()
        self.taken += self.problem.course.block
        return time.perf_counter() - start

    def parameters(self) -> Values:
        return {name: np.asarray(value) for name, value in self.svi.get_params(self.state).items()}


TRAINERS: dict[str, type[Trainer]] = {"sgc": Compiled, "Pyro": Eager, "Pyro Jit": EagerJit, "NumPyro": Jax}
