"""Where an expression stands: the plates around it, and the variables that it may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

NESTING = 3
"""The ``max_plate_nesting`` of programs with vectorised particles."""


@dataclass(frozen=True)
class Plate:
    """A plate around a statement; a sequential one is a loop and has no dim. ``rows`` names the drawn rows, if any."""

    name: str
    sequential: bool = False
    rows: str = ""

    @property
    def size(self) -> str:
        return f"@{self.name}"

    @property
    def drawn(self) -> str:
        return f"@@{self.name}" if self.rows else f"@{self.name}"


@dataclass(frozen=True)
class Variable:
    """A sample or a local value that an expression may read.

    ``tainted``: it depends on a site that is scored, of which eager Pyro keeps track.
    """

    name: str
    support: str
    pair: bool
    plates: tuple[Plate, ...]
    tainted: bool


@dataclass(frozen=True)
class Scope:
    """What an expression may read where it stands, on one side (model or guide)."""

    side: str
    plates: tuple[Plate, ...] = ()
    variables: tuple[Variable, ...] = ()

    @property
    def vectorised(self) -> list[Plate]:
        """The plates with a dim, the one of dim -1 first."""
        return [plate for plate in self.plates if not plate.sequential]

    def shape(self, *event: int, drawn: bool = False) -> str:
        """The shape of a tensor with a value for each row of each plate, loops first."""
        loops = [plate for plate in self.plates if plate.sequential and not drawn]
        dims = [p.drawn if drawn else p.size for p in [*loops, *reversed(self.vectorised)]]
        return "(" + "".join(f"{dim}, " for dim in [*dims, *event]).strip() + ")"

    def row(self, event_dims: int = 0) -> str:
        """The index of a tensor of that shape that takes this row of each loop, and the drawn rows of each plate."""
        loops = "".join(f"[i_{plate.name}]" for plate in self.plates if plate.sequential)
        taken = ""
        for position, plate in enumerate(self.vectorised):
            if plate.rows:
                taken += f"[..., {plate.rows}{', :' * (position + event_dims)}]"
        return loops + taken

    def visible(self, test: Callable[[Variable], bool]) -> list[Variable]:
        return [v for v in self.variables if test(v)]

    def without_taint(self) -> Scope:
        return replace(self, variables=tuple(v for v in self.variables if not v.tainted))

    def with_variable(self, variable: Variable) -> Scope:
        return replace(self, variables=(*self.variables, variable))
