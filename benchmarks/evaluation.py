"""The ELBO of parameters, whoever trained them: by eager Pyro, with many samples, the same ones each time."""

from __future__ import annotations

import pyro
import pyro.infer
import torch
from torch.distributions import transform_to

from benchmarks.problems.base import Problem
from benchmarks.workloads.base import Values

SEED = 12345


class Evaluator:
    """Has Pyro's param store for itself, and so is not in the process that trains."""

    def __init__(self, problem: Problem) -> None:
        judge = problem.judge
        options = {"num_particles": judge.particles, "vectorize_particles": judge.vectorized and judge.particles > 1}
        pyro.clear_param_store()
        self._count = problem.count
        self._elbo = getattr(pyro.infer, judge.objective)(max_plate_nesting=problem.nesting, **options)
        self._programs = problem.pyro(judge.variant)
        self._data = torch.tensor(problem.data)
        self._loss()  # makes the parameters

    def elbo(self, values: Values) -> float:
        """The ELBO for each datum.

        :param values: of all parameters of the programs by which it is evaluated, constrained; others are left out.
        """
        store = pyro.get_param_store()
        constraints = store.get_state()["constraints"]
        with torch.no_grad():
            for name, unconstrained in store.named_parameters():
                value = torch.tensor(values[name.replace("$$$", ".")])
                unconstrained.copy_(transform_to(constraints[name]).inv(value))
        return -self._loss() / self._count

    def _loss(self) -> float:
        pyro.set_rng_seed(SEED)
        with torch.no_grad():
            return float(self._elbo.loss(*self._programs, self._data))
