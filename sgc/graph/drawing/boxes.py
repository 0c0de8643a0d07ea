"""The boxes around drawn nodes: plates, and the steps of loops that are folded into one; each within the larger one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sgc.graph.drawing.drawn_graph import DrawnGraph
from sgc.graph.drawing.folded_names import FoldedNames
from sgc.graph.drawing.folding import FoldedNode
from sgc.graph.nodes import Payload, SiteNode
from sgc.graph.program import Plate


@dataclass(frozen=True)
class Box:
    """A plate or a loop; ``letters`` are those of the numbers that differ between its steps."""

    label: str
    is_loop: bool
    letters: frozenset[str] = field(default=frozenset())


def boxes_of(drawn: DrawnGraph, nodes: Sequence[FoldedNode], names: FoldedNames) -> dict[FoldedNode, tuple[Box, ...]]:
    """The boxes around each node, the outermost first.

    Of two boxes around a node the one around more nodes is the outer. A sequential plate and a loop around the same
    sites are one box.
    """
    inside: dict[Box, list[FoldedNode]] = {}
    for node in nodes:
        for plate_box in _plates(drawn, names, node):
            inside.setdefault(plate_box, []).append(node)
    loops: dict[Box, list[FoldedNode]] = {}
    for letter, numbers in names.loops.items():
        members = [node for node in nodes if any(node is number[0] for number in numbers)]
        sites = [node for node in members if node.first in drawn.follows or isinstance(_payload(drawn, node), SiteNode)]
        if len(members) > 1:
            label = f"{names.range_of(letter)} ({len(names.values(letter))} times)"
            sequential = next((box for box, own in inside.items() if box.is_loop and own == sites), None)
            if sequential is not None:
                del inside[sequential]
                label = f"{sequential.label}, {names.range_of(letter)}"
            loops[Box(label, True, frozenset({letter}))] = members
    inside = {**inside, **loops}
    places = {box: place for place, box in enumerate(inside)}
    around: dict[FoldedNode, tuple[Box, ...]] = {}
    for node in nodes:
        own = [box for box, members in inside.items() if any(node is member for member in members)]
        around[node] = tuple(sorted(own, key=lambda box: (-len(inside[box]), places[box])))
    return around


def _payload(drawn: DrawnGraph, node: FoldedNode) -> Payload | None:
    return drawn.graph.payload(node.first) if node.first in drawn.graph else None


def _plates(drawn: DrawnGraph, names: FoldedNames, node: FoldedNode) -> Iterator[Box]:
    plates = [drawn.plates(member) for member in node.members]
    for column in zip(*plates, strict=True):
        name = names.of_each(node, [plate.name for plate in column])
        yield Box(f"{name}: {_size(column[0])}", not column[0].vectorized)


def _size(plate: Plate) -> str:
    size = str(plate.size)
    if plate.full_size is not None and str(plate.full_size) != size:
        size = f"{size} of {plate.full_size}"
    return size if plate.vectorized else f"{size} in sequence"
