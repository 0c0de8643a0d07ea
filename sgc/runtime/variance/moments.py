"""Means of random vectors, and the traces of their covariances, from weighted draws one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Vector = Mapping[str, Tensor]
"""A vector in parts, by their names; a part that is not there is zero."""


class Moments:
    """The moments of several random vectors of which each draw gives one each.

    The traces of covariances are kept by parts: of a part with elements ``i`` the sum over ``i`` of
    ``Cov(x_i, y_i)``. They are updated as by Welford (1962), in double precision: nothing is kept of a draw.

    :param pairs: the names of the vectors whose covariance is wanted; of a vector with itself, that is its variance.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = tuple(pairs)
        self._names = tuple(dict.fromkeys(name for pair in self._pairs for name in pair))
        self._means: dict[str, dict[str, Tensor]] = {name: {} for name in self._names}
        self._sums: dict[tuple[str, str], dict[str, float]] = {pair: {} for pair in self._pairs}
        self.count = 0
        self.weight = 0.0

    def add(self, vectors: Mapping[str, Vector], weight: float = 1.0) -> None:
        """Take one draw.

        :param weight: its probability, where the draws are all outcomes.
        """
        self.count += 1
        self.weight += weight
        before: dict[str, dict[str, Tensor]] = {}
        after: dict[str, dict[str, Tensor]] = {}
        for name in self._names:
            means, before[name], after[name] = self._means[name], {}, {}
            for part in {**means, **vectors[name]}:
                known = means.get(part)
                value = vectors[name].get(part)
                if known is None:
                    assert value is not None
                    known = torch.zeros_like(value, dtype=torch.float64)
                drawn = torch.zeros_like(known) if value is None else value.detach().double()
                before[name][part] = drawn - known
                means[part] = known + before[name][part] * (weight / self.weight)
                after[name][part] = drawn - means[part]
        for one, other in self._pairs:
            sums = self._sums[one, other]
            for part in before[one].keys() & after[other].keys():
                product = (before[one][part] * after[other][part]).sum().item()
                sums[part] = sums.get(part, 0.0) + weight * product

    def mean(self, name: str) -> Vector:
        """The mean of a vector."""
        return self._means[name]

    def covariance(self, one: str, other: str, *, exact: bool = False) -> dict[str, float]:
        """The trace of the covariance of each part.

        :param exact: whether the draws were all outcomes; else they are a sample, and the estimate is unbiased.
        """
        total = self.weight if exact else self.weight * (self.count - 1) / self.count
        return {part: value / total for part, value in self._sums[one, other].items()}
