"""The sizes of arguments that differ from call to call."""

from __future__ import annotations

from collections.abc import Iterator

from sgc.guards.base import Call, Guard
from sgc.guards.miss import FEW_SHAPES, Miss
from sgc.tracing.symbolic_sizes import SymbolicSizes


class SizesGuard(Guard):
    """The conditions under which what was captured for some sizes holds for others.

    It stands behind the guard of the arguments, which says that they are tensors of as many dims. More conditions may
    come while the program is compiled.
    """

    def __init__(self, sizes: SymbolicSizes) -> None:
        self._sizes = sizes

    def miss(self, call: Call) -> Miss | None:
        broken = self._sizes.broken(call.leaves)
        return None if broken is None else Miss(f"of the sizes of the arguments, {broken}", remedy=FEW_SHAPES)

    def describe(self) -> Iterator[str]:
        yield from self._sizes.conditions()
