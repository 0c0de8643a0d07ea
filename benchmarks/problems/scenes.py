"""AIR (Eslami et al. 2016) of :mod:`benchmarks.workloads.air`, trained in minibatches of scenes with up to 2 digits."""

from __future__ import annotations

from typing import Any

from benchmarks.problems.base import Course, Judge, Method, Problem
from benchmarks.workloads import data
from benchmarks.workloads.air import SIDE, STEPS, AttendInferRepeat
from benchmarks.workloads.base import Program

BATCH = 64


class Scenes(Problem):
    title = "AIR, 512 scenes of up to 2 digits in minibatches of 64"
    words = (
        "The baseline is another recurrent network; NumPyro has none. Pyro's program runs once for each particle, "
        "NumPyro's is vectorised. The ELBO is that of all scenes, for each scene."
    )
    methods = (
        Method("sgc", "recurrent baseline", "baseline"),
        Method("sgc", "no baseline", "none"),
        Method("sgc", "leave-one-out, K = 2", "none", particles=2, estimators="leave-one-out"),
        Method("sgc", "leave-one-out, K = 4", "none", particles=4, estimators="leave-one-out"),
        Method("Pyro", "recurrent baseline", "baseline"),
        Method("Pyro", "no baseline", "none"),
        Method("Pyro Jit", "recurrent baseline", "baseline"),
        Method("Pyro Jit", "no baseline", "none"),
        Method("NumPyro", "no baseline", "none"),
        Method("NumPyro", "no baseline, K = 4", "none", particles=4),
    )
    course = Course(learning_rate=0.003, block=40, blocks=40, reference=128.76, fraction=0.9)
    nesting = 1
    judge = Judge("baseline", "Trace_ELBO", 4, vectorized=False)

    def __init__(self, quick: bool = False) -> None:
        self.batches = 1 if quick else 8
        self.count = self.batches * BATCH
        self.data = data.scenes(self.count, SIDE, STEPS)
        self.minibatches = self.data.reshape(self.batches, BATCH, SIDE, SIDE)
        self.values = AttendInferRepeat(BATCH).values

    def pyro(self, variant: str) -> Program:
        return AttendInferRepeat(BATCH, baseline=variant == "baseline").pyro()

    def numpyro(self, variant: str) -> Program:
        return AttendInferRepeat(BATCH).numpyro()

    def options(self, method: Method) -> dict[str, Any]:
        """A cell of an RNN takes no dim for particles."""
        return super().options(method) | {"vectorize_particles": False}
