"""The sizes of arguments that differ from call to call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sgc.guards.base import Call, Guard
from sgc.guards.miss import FEW_SHAPES, Miss
from sgc.tracing.symbolic_sizes import SymbolicSizes

Fits = Callable[[Call], bool]


class SizesGuard(Guard):
    """The conditions under which what was captured for some sizes holds for others.

    It stands behind the guards of the tensors, which say that they have as many dims. More conditions may come while
    the program is compiled.

    :param own: by sizes, whether another version, which is for just these, is for a call: it is faster.
    """

    def __init__(self, sizes: SymbolicSizes, own: Mapping[tuple[int, ...], Fits]) -> None:
        self._sizes = sizes
        self._own = own

    def miss(self, call: Call) -> Miss | None:
        sizes = self._sizes.of_call(call.leaves)
        broken = self._sizes.broken(sizes, call.leaves)
        if broken is not None:
            return Miss(f"of the sizes, {broken}", remedy=FEW_SHAPES)
        fits: Any = self._own.get(sizes)
        return Miss("another version is for just these sizes") if fits is not None and fits(call) else None

    def describe(self) -> Iterator[str]:
        yield from self._sizes.conditions()
