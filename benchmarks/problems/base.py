"""What a problem is: a model that is trained until its ELBO is good enough, and the ways to train it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.workloads.base import Program, Values

Library = Literal["sgc", "Pyro", "Pyro Jit", "NumPyro"]


@dataclass(frozen=True)
class Method:
    """A row: a library, and how it estimates the gradient.

    :param library: whose ``SVI`` trains.
    :param words: how the gradient is estimated, for the table.
    :param variant: which of the problem's programs; what the names are, says the problem.
    :param objective: the name of the ELBO class.
    :param particles: vectorised.
    :param estimators: sgc's option of this name.
    """

    library: Library
    words: str
    variant: str
    objective: Literal["TraceGraph_ELBO", "TraceEnum_ELBO"] = "TraceGraph_ELBO"
    particles: int = 1
    estimators: str | None = None

    @property
    def name(self) -> str:
        return f"{self.library}: {self.words}"


@dataclass(frozen=True)
class Judge:
    """By what the ELBO of parameters is evaluated: by Pyro, whoever trained them.

    :param variant: the problem's program.
    :param objective: the name of Pyro's class.
    :param particles: the samples that it is the mean of.
    :param vectorized: whether they are drawn side by side.
    """

    variant: str
    objective: Literal["Trace_ELBO", "TraceEnum_ELBO"]
    particles: int
    vectorized: bool = True


RATES = (0.003, 0.01, 0.03, 0.1)
"""The learning rates that are tried."""


@dataclass(frozen=True)
class Course:
    """How a problem is trained, the same by every method.

    :param learning_rate: Adam's: of ``RATES`` the one with the highest ELBO at the end, on the mean of sgc's methods.
    :param block: how many steps are taken between two evaluations.
    :param blocks: after how many of them a run that has not reached the target ends.
    :param reference: the highest ELBO at the end of all methods of sgc at all ``RATES``, under a seed that is not
        measured. Both are printed by ``python -m benchmarks.training --reference``.
    :param fraction: the target is this part of the way from the first ELBO to the reference.
    """

    learning_rate: float
    block: int
    blocks: int
    reference: float
    fraction: float

    @property
    def steps(self) -> int:
        """The most that a run takes."""
        return self.block * self.blocks

    def target(self, first: float) -> float:
        """The ELBO for each datum at which a run ends, from that of the first parameters."""
        return first + self.fraction * (self.reference - first)


class Problem(ABC):
    """Data, first values of the parameters, and one model and guide in Pyro and in NumPyro, in several variants.

    Parameters are unconstrained or positive, so that both libraries give Adam the same coordinates.
    """

    title: str
    words: str
    """What is trained on what, and what the target is an ELBO of; a sentence or two for the table."""
    methods: tuple[Method, ...]
    course: Course
    minibatches: np.ndarray
    """[count, ...]: what model and guide are called with, one after another; for full-batch training there is one."""
    data: np.ndarray
    """What the ELBO is evaluated on: all data that is trained on."""
    count: int
    """Of how many data the ELBO is the sum."""
    values: Values
    nesting: int
    """How deep plates are nested."""
    judge: Judge

    @abstractmethod
    def pyro(self, variant: str) -> Program:
        """Model and guide for Pyro and sgc."""

    @abstractmethod
    def numpyro(self, variant: str) -> Program:
        """Model and guide for NumPyro, which this function imports."""

    def options(self, method: Method) -> dict[str, Any]:
        """For an ELBO class of Pyro's or sgc's."""
        options: dict[str, Any] = {"max_plate_nesting": self.nesting}
        return options | (
            {"num_particles": method.particles, "vectorize_particles": True} if method.particles > 1 else {}
        )
