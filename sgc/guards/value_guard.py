"""Values that a program read from its inputs in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgc.graph.aliasing import copies
from sgc.graph.program import Input, ValueGuard
from sgc.guards.base import Call, Guard
from sgc.guards.miss import READ_OUTSIDE, Miss
from sgc.guards.tensor_guard import TensorGuard
from sgc.native import conditions
from sgc.native.conditions import Condition


class ValuesGuard(Guard):
    """The values that the program read from its inputs while it was captured (``int(lengths.max())``).

    :param tensors: the guard of these inputs; it comes before this one.
    """

    def __init__(self, guards: Sequence[ValueGuard], inputs: Sequence[Input], tensors: TensorGuard) -> None:
        self._tensors = tensors
        position = {declared.name: i for i, declared in enumerate(inputs)}
        self._guards = [(guard, [position[name] for name in guard.inputs]) for guard in guards]

    def conditions(self) -> list[Condition]:
        return [conditions.NEVER] if self._guards else []

    def miss(self, call: Call) -> Miss | None:
        with torch.no_grad():
            for guard, positions in self._guards:
                tensors = [self._tensors.fetch(call, i) for i in positions]
                value = guard.module(*(copies(tensors) if guard.writes else (t.detach().clone() for t in tensors)))
                if not _is_same(value, guard.value):
                    where = f" (read at {guard.source})" if guard.source else ""
                    about = f"a value computed from {', '.join(guard.inputs)}"
                    return Miss(f"{about} changed{where}", about + where, READ_OUTSIDE)
        return None

    def describe(self) -> Iterator[str]:
        for guard, _ in self._guards:
            yield f"{guard.value.tolist()} from {', '.join(guard.inputs)}, read at {guard.source}"


def _is_same(value: Tensor, expected: Tensor) -> bool:
    """Whether two tensors hold the same numbers, also in the sign of a zero; NaN is NaN."""
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    if not value.is_floating_point():
        return torch.equal(value, expected)
    return bool((value.eq(expected) & value.signbit().eq(expected.signbit()) | value.isnan() & expected.isnan()).all())
