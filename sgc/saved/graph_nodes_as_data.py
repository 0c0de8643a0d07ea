"""A stochastic computation graph as data: its nodes with their records, its edges, and the text that it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

import torch

from sgc.emit.fx.values_as_data import of_torch
from sgc.errors import SourceLine
from sgc.graph.cost_sums import Reduction
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import Estimator, Payload
from sgc.graph.program import InputKind, Particles, Plate, PlateRows, SiteKind
from sgc.graph.sizes import Size
from sgc.passes import pipeline  # noqa: F401  (all types of nodes are there once it is imported)

_ENUMS: dict[str, type[Enum]] = {each.__name__: each for each in (InputKind, SiteKind)}
_PARTS: tuple[type[Any], ...] = (Plate, PlateRows, Particles, Reduction, Estimator, SourceLine)


class SavedGraph(StochasticGraph):
    """The graph of a program that comes from a file: it prints as it did where it was saved."""

    text: str = ""

    def copy(self, as_view: bool = False) -> Any:
        copied = super().copy(as_view=as_view)
        copied.text = self.text
        return copied

    def __str__(self) -> str:
        return self.text


@cache
def _records() -> dict[str, type[Any]]:
    """The types of records that a graph has, by their names."""
    return {each.__name__: each for each in (*_PARTS, *_below(Payload))}


def _below(base: type[Payload]) -> Iterator[type[Payload]]:
    for each in base.__subclasses__():
        yield each
        yield from _below(each)


def graph_as_data(graph: StochasticGraph) -> dict[str, Any]:
    """A graph.

    :raises ValueError: if a node has something that no file holds.
    """
    return {
        "nodes": [_as_data(graph.payload(key)) for key in graph],
        "edges": [[parent, child, "across" in data] for parent, child, data in graph.edges(data=True)],
        "text": str(graph),
    }


def graph_of_data(data: dict[str, Any]) -> SavedGraph:
    """A graph of such data.

    :raises ValueError: if these are none.
    """
    graph = SavedGraph()
    for noted in data["nodes"]:
        payload = _of_data(noted)
        if not isinstance(payload, Payload) or payload.key in graph:
            raise ValueError("a node of a graph that is none, or has a name that is taken")
        graph.add(payload)
    for parent, child, across in data["edges"]:
        if parent not in graph or child not in graph:
            raise ValueError("an edge between nodes that are not there")
        (graph.add_edge_across_particles if across else graph.add_edge)(parent, child)
    if not isinstance(data["text"], str):
        raise ValueError("a graph without a text")
    graph.text = data["text"]
    return graph


def _as_data(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str, float)) or type(value) is int:
        return value
    if isinstance(value, Size):
        return ["size", int(value), value.formula]
    if isinstance(value, SourceLine):
        value = dataclasses.replace(value, kept=value.text)
    if isinstance(value, tuple):
        return ["tuple", *map(_as_data, value)]
    if isinstance(value, frozenset):
        return ["set", *sorted((_as_data(part) for part in value), key=repr)]
    if isinstance(value, Enum):
        return ["enum", type(value).__name__, value.value]
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if type(value) in _records().values():
        fields = {field.name: _as_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return ["record", type(value).__name__, fields]
    raise ValueError(f"a graph with a {type(value).__name__}")


def _of_data(data: Any) -> Any:
    if not isinstance(data, list):
        if data is None or isinstance(data, (bool, str, int, float)):
            return data
        raise ValueError(f"no part of a graph is a {type(data).__name__}")
    kind, *parts = data
    match kind:
        case "size":
            return Size(int(parts[0]), str(parts[1]))
        case "tuple":
            return tuple(map(_of_data, parts))
        case "set":
            return frozenset(map(_of_data, parts))
        case "enum":
            return _ENUMS[parts[0]](parts[1])
        case "dtype":
            return of_torch(parts[0])
        case "device":
            return torch.device(parts[0])
        case "record":
            name, fields = parts
            return _records()[name](**{field: _of_data(value) for field, value in fields.items()})
        case _:
            raise ValueError(f"no part of a graph is of the kind {kind!r}")
