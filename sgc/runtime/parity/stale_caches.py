"""Clears what an earlier run has left in the caches of transforms, before eager Pyro computes with it.

A transform keeps the latest pair of its two sides. At an observed site it meets the same value in each run, and goes on
with a result of the parameters as they were, whose graph autograd has freed; by Pyro users call ``clear_cache()`` after
each step. A compiled program keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform


class StaleCachesCleared(Messenger):
    """Clears, at each sample statement in its scope, what its distribution's transforms keep of an earlier time."""

    def __init__(self) -> None:
        super().__init__()
        self._began = torch._C._autograd._get_sequence_nr()  # there is no public way to tell what is older

    def _pyro_sample(self, msg: Any) -> None:
        for transform in transforms_of(msg["fn"]):
            kept: Any = getattr(transform, "_cached_x_y", (None, None))
            if any(self._is_older(side) for side in kept):
                transform._cached_x_y = None, None

    def _is_older(self, side: Any) -> bool:
        made_by = side.grad_fn if isinstance(side, Tensor) else None
        return made_by is not None and made_by._sequence_nr() < self._began


def transforms_of(distribution: Any) -> Iterator[Transform]:
    """All transforms of a distribution, those that others are made of, too."""
    waiting: list[Any] = []
    while distribution is not None:
        waiting += getattr(distribution, "transforms", ())
        distribution = getattr(distribution, "base_dist", None)
    met: set[int] = set()
    while waiting:
        transform = waiting.pop()
        if isinstance(transform, Transform) and id(transform) not in met:
            met.add(id(transform))
            yield transform
            own = vars(transform)
            waiting += (*own.get("parts", ()), *own.get("transforms", ()), own.get("base_transform"), own.get("_inv"))
