"""Particles that are run one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sgc.emit.inductor.compile_graph import Runner


class Repeated:
    """The mean of several runs of a callable that returns a list of tensors, one run after another.

    :param written: which tensors runs may write into, if each also says whether it was valid: if one was not, what all
        have written is put back.
    """

    def __init__(self, run: Runner, times: int, written: Callable[[list[Tensor]], list[Tensor]] | None) -> None:
        self._run = run
        self._times = times
        self._written = written

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if self._written is None:
            return self._mean(tensors, [])
        kept = [(tensor, tensor.clone()) for tensor in self._written(list(tensors))]
        valid: list[Tensor] = []
        mean = self._mean(tensors, valid)
        holds = torch.stack(valid).all()
        for tensor, before in kept:
            tensor.copy_(torch.where(holds, tensor, before))
        return [*mean, holds]

    def _mean(self, tensors: tuple[Tensor, ...], valid: list[Tensor]) -> list[Tensor]:
        total: list[Tensor] = []
        for _ in range(self._times):
            results = list(self._run(*tensors))
            if self._written is not None:
                valid.append(results.pop())
            if total:
                torch._foreach_add_(total, results)
            else:
                total = [result.clone() for result in results]
        torch._foreach_div_(total, self._times)
        return total
