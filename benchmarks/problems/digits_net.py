"""The sigmoid belief net of :mod:`benchmarks.workloads.belief_net`, trained in minibatches on digits."""

from __future__ import annotations

from typing import get_args

from benchmarks.problems.base import Course, Judge, Method, Problem
from benchmarks.workloads.base import Program
from benchmarks.workloads.belief_net import Baselines, BeliefNet
from benchmarks.workloads.data import PIXELS, binary

BATCH = 128


class DigitsNet(Problem):
    title = "Sigmoid belief net, 1536 digits in minibatches of 128"
    words = "Two binary layers of 32 and 64 units. The ELBO is that of all digits, for each digit."
    methods = (
        Method("sgc", "network + decaying average", "network + average"),
        Method("sgc", "leave-one-out, K = 2", "none", particles=2, estimators="leave-one-out"),
        Method("sgc", "leave-one-out, K = 4", "none", particles=4, estimators="leave-one-out"),
        Method("sgc", "leave-one-out, K = 8", "none", particles=8, estimators="leave-one-out"),
        Method("sgc", "auto, K = 4", "none", particles=4, estimators="auto"),
        Method("Pyro", "network + decaying average", "network + average"),
        Method("Pyro Jit", "network (an average is an error there)", "network"),
        Method("NumPyro", "no baseline", "none"),
        Method("NumPyro", "no baseline, K = 8", "none", particles=8),
    )
    course = Course(learning_rate=0.01, block=48, blocks=40, reference=-17.9453, fraction=0.9)
    nesting = 1
    judge = Judge("none", "Trace_ELBO", 8)

    def __init__(self, quick: bool = False) -> None:
        self.batches = 2 if quick else 12
        self.count = self.batches * BATCH
        self.data = binary(self.count)
        self.minibatches = self.data.reshape(self.batches, BATCH, PIXELS)
        self.values = BeliefNet(BATCH).values

    def pyro(self, variant: str) -> Program:
        baselines: dict[str, Baselines] = {name: name for name in get_args(Baselines)}
        return BeliefNet(BATCH, baselines[variant]).pyro()

    def numpyro(self, variant: str) -> Program:
        return BeliefNet(BATCH).numpyro()
