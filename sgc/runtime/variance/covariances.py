"""The covariances of many random vectors with each other, from one draw of all of them after another."""

from __future__ import annotations

import torch
from torch import Tensor

from sgc.runtime.variance.moments import Vector


class Covariances:
    """For each pair of vectors the sum over their elements of the covariance, and so the variance of any sum of some.

    :param names: of the vectors. They are updated as by Welford (1962), in double precision: nothing is kept of a draw.
    :param elements: by part of a vector, how many elements it has.
    """

    def __init__(self, names: tuple[tuple[str, str], ...], elements: dict[str, int]) -> None:
        self._row = {name: row for row, name in enumerate(names)}
        self._means = {part: torch.zeros(len(names), count, dtype=torch.float64) for part, count in elements.items()}
        self._sums = torch.zeros(len(names), len(names), dtype=torch.float64)
        self._count = 0.0

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parts of the vectors."""
        return tuple(self._means)

    def add(self, vectors: dict[tuple[str, str], Vector], weight: float = 1.0) -> None:
        """Take one draw.

        :param weight: its probability, where the draws are all outcomes.
        """
        self._count += weight
        for part, mean in self._means.items():
            drawn = torch.zeros_like(mean)
            for name, vector in vectors.items():
                if part in vector:
                    drawn[self._row[name]] = vector[part].detach().to("cpu", torch.float64).flatten()
            before = drawn - mean
            mean += before * (weight / self._count)
            self._sums += weight * before @ (drawn - mean).mT

    def of_sum(self, names: list[tuple[str, str]], *, exact: bool = False) -> float:
        """The variance of the sum of some vectors; NaN where one was not finite.

        :param exact: whether the draws were all outcomes; else the estimate is unbiased, for weights of one.
        """
        rows = torch.tensor([self._row[name] for name in names])
        total: Tensor = self._sums[rows][:, rows].sum()
        return float(total) / (self._count if exact else self._count - 1)
