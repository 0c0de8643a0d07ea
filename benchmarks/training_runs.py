"""Trains one problem by one method until its ELBO is good enough, in a process of its own; evaluates in this one."""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.run import made_once, new_cache
from benchmarks.worker import Failed, Job, Worker, all_cores

if TYPE_CHECKING:
    from benchmarks.evaluation import Evaluator
    from benchmarks.problems.base import Method, Problem
    from benchmarks.workloads.base import Values

QUICK = "quick"
"""The size of a problem that asks for a small one."""


class Plan(NamedTuple):
    """How long a run lasts.

    :param learning_rate: Adam's.
    :param blocks: the most blocks of steps that a run takes.
    :param limit: the seconds of steps after which it ends.
    :param target: the ELBO for each datum at which it ends.
    """

    learning_rate: float
    blocks: int
    limit: float
    target: float


class Block(NamedTuple):
    """The seconds that a block of steps took, and the parameters after it."""

    seconds: float
    values: Values


@dataclass
class Run:
    """One training.

    :param seed: of the samples.
    :param steps: taken until the target was reached, or until the end.
    :param seconds: that these steps took.
    :param elbo: for each datum, after the last of them.
    :param reached: whether that is the target.
    """

    seed: int
    steps: int
    seconds: float
    elbo: float
    reached: bool


@dataclass
class Row:
    """All trainings of one method.

    :param start: seconds until everything is made and compiled, from an empty cache.
    """

    method: Method
    start: float | None = None
    runs: list[Run] = field(default_factory=list)
    failure: str | None = None

    @property
    def works(self) -> bool:
        """Whether most runs reach the target."""
        return self.failure is None and math.isfinite(self.seconds)

    @property
    def reached(self) -> list[Run]:
        return [run for run in self.runs if run.reached]

    @property
    def seconds(self) -> float:
        """Of the steps to the target: the median, in which a run that does not reach it is longer than all that do."""
        return statistics.median_high(run.seconds if run.reached else math.inf for run in self.runs)

    @property
    def together(self) -> float:
        """The start and the steps."""
        return (self.start or 0.0) + self.seconds

    @property
    def steps(self) -> float:
        """To the target: the median, as of the seconds."""
        return statistics.median_high(run.steps if run.reached else math.inf for run in self.runs)

    @property
    def pace(self) -> float:
        """Seconds a step, over all runs."""
        return sum(run.seconds for run in self.runs) / sum(run.steps for run in self.runs)

    @property
    def elbo(self) -> float:
        """Where the runs ended: the median."""
        return statistics.median(run.elbo for run in self.runs)


class Training:
    """Trains a problem by each of its methods.

    :param name: the problem's.
    :param quick: whether at a small size.
    :param threads: of the process that trains.
    :param patience: how long a start or a block may take, in seconds.
    """

    def __init__(self, name: str, quick: bool, threads: int = 1, patience: float = 300.0) -> None:
        from benchmarks.evaluation import Evaluator
        from benchmarks.problems import PROBLEMS

        self._name = name
        self._sizes = {QUICK: 1} if quick else {}
        self._threads = threads
        self._patience = patience
        self.problem: Problem = PROBLEMS[name](quick)
        self._evaluator: Evaluator = Evaluator(self.problem)
        self.first = self._evaluator.elbo(self.problem.values)
        """The ELBO for each datum before any step."""

    @property
    def target(self) -> float:
        return self.problem.course.target(self.first)

    def row(self, method: Method, seeds: Iterable[int], plans: Sequence[Plan]) -> Row:
        """Train by each plan, with each seed."""
        row = Row(method)
        cache = new_cache()
        if method.library == "sgc":
            shutil.copytree(made_once("cpu", self._threads), cache, dirs_exist_ok=True)
        job = Job(method.name, self._name, self._sizes, threads=self._threads, cache=cache)
        worker = Worker(job, set(all_cores()[-self._threads :]), self._patience, answers)
        try:
            row.start = worker.ask("start", plans[0].learning_rate)
            for plan, seed in itertools.product(plans, seeds):
                row.runs.append(self._run(worker, seed, plan))
        except Failed as failed:
            row.failure = failed.reason
        finally:
            worker.close()
            shutil.rmtree(cache, ignore_errors=True)
        return row

    def _run(self, worker: Worker, seed: int, plan: Plan) -> Run:
        worker.ask("restart", (seed, plan.learning_rate))
        run = Run(seed, 0, 0.0, self.first, False)
        most = plan.blocks * self.problem.course.block
        while run.steps < most and run.seconds < plan.limit and not run.reached:
            block: Block = worker.ask("advance", None)
            run.steps += self.problem.course.block
            run.seconds += block.seconds
            run.elbo = self._evaluator.elbo({**self.problem.values, **block.values})
            run.reached = run.elbo >= plan.target
        return run


def answers(job: Job) -> Callable[[str, Any], Any]:
    """The answers of the process that trains."""
    import torch

    from benchmarks.problems import PROBLEMS
    from benchmarks.trainers import TRAINERS, Trainer

    torch.set_num_threads(job.threads)
    problem = PROBLEMS[job.family](QUICK in job.sizes)
    (method,) = (method for method in problem.methods if method.name == job.system)
    trainer: Trainer | None = None

    def answer(what: str, argument: Any) -> Any:
        nonlocal trainer
        if what == "start":
            trainer = TRAINERS[method.library](problem, method)
            start = time.perf_counter()
            trainer.prepare(argument)
            return time.perf_counter() - start
        assert trainer is not None, "the start comes first"
        if what == "restart":
            trainer.restart(*argument)
            return None
        return Block(trainer.advance(), trainer.parameters())

    return answer
