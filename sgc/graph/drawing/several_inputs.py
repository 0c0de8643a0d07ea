"""Inputs of one kind that go to the same nodes are drawn as one: the parameters of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgc.graph.drawing.scene import SceneEdge, SceneNode

_MOST = 2
"""How many such inputs are drawn one by one, if they are not of one module."""


def together(
    nodes: Sequence[SceneNode], edges: Sequence[SceneEdge]
) -> tuple[tuple[SceneNode, ...], tuple[SceneEdge, ...]]:
    """Draw as one node what only tells apart parameters, or constants, of one network."""
    leaving: dict[str, list[tuple[str, str]]] = {}
    entered = {edge.target for edge in edges}
    for edge in edges:
        leaving.setdefault(edge.source, []).append((edge.target, edge.label))
    groups: dict[object, list[SceneNode]] = {}
    for node in nodes:
        to = frozenset(leaving.get(node.name, ()))
        one_by_one = None if node.name not in entered and to and node.lines[1:] else node.name
        kind = node.lines[1].partition(" ")[0] if one_by_one is None else ""
        groups.setdefault((node.look, kind, node.boxes, node.faded, to, one_by_one), []).append(node)
    shown = [node for group in groups.values() for node in ([_one(group)] if _may_be_one(group) else group)]
    order = {node.name: place for place, node in enumerate(nodes)}
    kept = {node.name for node in shown}
    return (
        tuple(sorted(shown, key=lambda node: order[node.name])),
        tuple(edge for edge in edges if edge.source in kept and edge.target in kept),
    )


def _may_be_one(group: Sequence[SceneNode]) -> bool:
    return len(group) > _MOST or (len(group) > 1 and bool(_module(group)))


def _module(group: Sequence[SceneNode]) -> str:
    """The module whose parameters they are: what their names have in common up to a dot."""
    parts = [node.lines[0].split(".")[:-1] for node in group]
    common = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return ".".join(column[0] for column in common)


def _one(group: Sequence[SceneNode]) -> SceneNode:
    names = [node.lines[0] for node in group]
    module = _module(group)
    kind = group[0].lines[1].partition(" ")[0]
    members = tuple(member for node in group for member in node.members)
    name = f"{module}.*" if module else f"{names[0]}, {names[1]}, …"
    count = f"{len(members)} {kind}" + ("" if kind == "data" else "s")
    return replace(group[0], lines=(name, count), members=members, tooltip=", ".join(names))
