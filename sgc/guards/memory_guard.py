"""Which inputs lie in memory that a program writes into by another input."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from sgc.errors import CaptureError, SourceLine
from sgc.graph.aliasing import extent, shared
from sgc.graph.program import Program
from sgc.guards.base import Call, Guard
from sgc.guards.miss import Miss
from sgc.guards.tensor_guard import TensorGuard
from sgc.native import conditions
from sgc.native.conditions import Condition

_REMEDY = "clone one of them before the call"
_OR_EAGER = '; backend="eager" writes and reads as Pyro does'


class MemoryGuard(Guard):
    """That inputs have elements in common with those that the program writes into as they had at the capture.

    A write is seen through each view of the same memory: where there is another one, the program is another one too. A
    program that writes into none of its inputs has nothing to guard.

    :param tensors: the guard that finds the inputs; it comes before this one.
    """

    def __init__(self, program: Program, tensors: TensorGuard, call: Call) -> None:
        self._names = [declared.name for declared in program.inputs]
        self._written = [i for i, name in enumerate(self._names) if name in program.written]
        self._others = [i for i, name in enumerate(self._names) if name in program.used and name not in program.written]
        self._tensors = tensors
        now = self._inputs(call)
        self._sizes = [
            0 if tensor is None else None if program.is_resized(name) else extent(tensor)
            for name, tensor in zip(self._names, now, strict=True)
        ]
        self._shared = shared(now, self._written)

    @property
    def finds_shared(self) -> bool:
        """Whether there are such inputs in the calls that it lets pass."""
        return bool(self._shared)

    def refuse_shared(self, call: Call, line_of: Callable[[Tensor], SourceLine | None], *, sees_views: bool) -> None:
        """Refuse inputs that a write into another one changes, where what is compiled would not see that.

        :param line_of: the line that writes into a tensor.
        :param sees_views: whether a write is seen through views of one storage.
        :raises CaptureError: with the names of both.
        """
        now = self._inputs(call)
        for pair in self._shared:
            one, other = (now[i] for i in pair)
            assert one is not None and other is not None
            if sees_views and one.untyped_storage()._cdata == other.untyped_storage()._cdata:
                continue
            raise CaptureError(
                f"{self._said(pair)}: a compiled program would read there what was there before",
                source=line_of(one) or line_of(other),
                remedy=f"{_REMEDY}, or let the program write into a clone" + _OR_EAGER * (not sees_views),
            )

    def conditions(self) -> list[Condition]:
        if self._shared:
            return [conditions.NEVER]
        written = {i: self._sizes[i] for i in self._written}
        return [conditions.disjoint(written, {i: self._sizes[i] for i in self._others}, extent)] if written else []

    def miss(self, call: Call) -> Miss | None:
        now = shared(self._inputs(call), self._written)
        if now == self._shared:
            return None
        for pair in now:
            if pair not in self._shared:
                return Miss(self._said(pair), remedy=_REMEDY)
        before = next(pair for pair in self._shared if pair not in now)
        return Miss(f"before, {self._said(before)}", remedy=_REMEDY)

    def describe(self) -> Iterator[str]:
        yield from map(self._said, self._shared)

    def _inputs(self, call: Call) -> list[Tensor | None]:
        """The inputs that count; those that nothing is computed of do not, nor does any where none is written."""
        wanted = {*self._written, *self._others} if self._written else set()
        return [self._tensors.fetch(call, i) if i in wanted else None for i in range(len(self._names))]

    def _first_written(self, pair: tuple[int, int]) -> int:
        return next(i for i in pair if i in self._written)

    def _said(self, pair: tuple[int, int]) -> str:
        written = self._first_written(pair)
        (other,) = {*pair} - {written}
        return f"the program writes into {self._names[written]}, and {self._names[other]} lies in the same memory"
