"""What every system can do: train a workload by whole steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.workloads.base import Workload

LEARNING_RATE = 1e-9
"""So small that the parameters stay where they began, to the last bit or nearly: every system then does the same
arithmetic from the first step to the last, and the mean losses can be compared. A step costs what it costs at any
other rate."""

STEPS_A_RUN = 200
"""How many steps a system takes for one call, where it takes many."""


class System(ABC):
    """One way to train a workload with Adam.

    :param particles: how many particles a step averages over, vectorised.
    :param device: "cpu" or "cuda".
    """

    steps_a_call = 1

    def __init__(self, workload: Workload, particles: int = 1, device: str = "cpu") -> None:
        self.workload = workload
        self.particles = particles
        self.device = device

    @abstractmethod
    def prepare(self) -> None:
        """Build what is built once. Timed as part of the first call."""

    @abstractmethod
    def advance(self) -> Any:
        """Take ``steps_a_call`` steps; return the losses in whatever form the system has them."""

    @abstractmethod
    def wait(self, result: Any) -> None:
        """Until the device has finished what led to ``result``."""

    def losses(self, results: Sequence[Any]) -> np.ndarray:
        """The losses of many calls."""
        return np.concatenate([np.asarray(self.numbers(result), np.float64).reshape(-1) for result in results])

    @abstractmethod
    def numbers(self, result: Any) -> Any:
        """The losses of one call, as numpy takes them."""

    def device_peak(self) -> int | None:
        """The most bytes in use on a device of its own; ``None`` on a CPU."""
        return None
