"""Runs a schedule, each group as one operator, under a tracer that records the batched graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from sgc.emit.rewrites.batching.operations import RESHAPES, leaves, passed_on, row_of, run_batched
from sgc.emit.rewrites.batching.rows import Packet, Row, gather
from sgc.graph.effects import is_random


class Execution:
    """One run of a schedule.

    :param given: the values of the nodes that do not run.
    :param constants: rows of constant packets that hold some of these values.
    """

    def __init__(self, given: Mapping[fx.Node, Any], constants: Mapping[fx.Node, Row]) -> None:
        self._values = dict(given)
        self._rows = dict(constants)
        self._whole = set(given)  # nodes whose values were not made as rows
        self._same_as: dict[fx.Node, fx.Node] = {}
        self._unbound: dict[tuple[fx.Node, int], Packet] = {}
        self._gathered: dict[tuple[Row, ...], Tensor] = {}
        self._packets = len({row.packet for row in constants.values()})

    def value(self, node: fx.Node) -> Any:
        """The value of a node that has run."""
        node = self._same(node)
        if node not in self._values:
            row = row_of(node)
            if row is not None and self._same(row[0]) in self._whole:
                self._values[node] = self._values[self._same(row[0])].select(row[1], row[2])
            else:
                self._values[node] = self._rows[node].value()
        return self._values[node]

    def run(self, group: list[fx.Node]) -> None:
        """Run nodes of one signature together, or one node alone."""
        if len(group) == 1:
            self._alone(group[0])
        else:
            self._together(group)

    def _alone(self, node: fx.Node) -> None:
        same, row = passed_on(node), row_of(node)
        if same is not None:
            self._equate(node, same)
        elif row is not None and self._same(row[0]) in self._whole:
            self._rows[node] = Row(self._unbind(self._same(row[0]), row[1]), row[2])
        elif node.target is torch.ops.aten.stack.default:
            self._values[node] = self._restack(node)
            self._whole.add(node)
        else:
            target: Any = torch.ops.aten.reshape.default if node.target in RESHAPES else node.target
            args, kwargs = tree_map_only(fx.Node, self.value, (node.args, node.kwargs))
            self._values[node] = target(*args, **kwargs)
            self._whole.add(node)

    def _equate(self, node: fx.Node, other: fx.Node) -> None:
        self._same_as[node] = self._same(other)

    def _same(self, node: fx.Node) -> fx.Node:
        """The representative of all nodes with the value of ``node``."""
        return self._same_as.get(node, node)

    def _leaves(self, node: fx.Node) -> list[fx.Node]:
        return [self._same(leaf) for leaf in leaves(node)]

    def _together(self, group: list[fx.Node]) -> None:
        members = sorted(group, key=lambda node: [self._order(leaf) for leaf in self._leaves(node)])
        columns = list(zip(*(self._leaves(node) for node in members), strict=True))
        shared = [all(self._are_equal(node, column[0]) for node in column) for column in columns]
        if all(shared) and not is_random(members[0]):
            self._alone(members[0])
            for node in members[1:]:
                self._equate(node, members[0])
            return
        result = run_batched(
            members[0],
            [None if same else self._stack(column) for column, same in zip(columns, shared, strict=True)],
            [self.value(column[0]) if same else None for column, same in zip(columns, shared, strict=True)],
            len(members),
        )
        packet = self._packet(result)
        for index, node in enumerate(members):
            self._rows[node] = Row(packet, index)

    def _order(self, node: fx.Node) -> tuple[int, int]:
        """Sorts nodes such that rows of one packet stand together, in their order."""
        row = self._rows.get(node)
        return (-1, 0) if row is None else (row.packet.number, row.index)

    def _are_equal(self, one: fx.Node, other: fx.Node) -> bool:
        return one is other or (one in self._rows and self._rows[one] == self._rows.get(other))

    def _stack(self, nodes: tuple[fx.Node, ...]) -> Tensor:
        nodes = tuple(self._same(node) for node in nodes)
        single = list(dict.fromkeys(node for node in nodes if node not in self._rows))
        if single:
            # A stacked value is a row from now on.
            packet = self._packet(torch.stack([self._values[node] for node in single]))
            self._rows |= {node: Row(packet, index) for index, node in enumerate(single)}
        rows = tuple(self._rows[node] for node in nodes)
        if rows not in self._gathered:
            self._gathered[rows] = gather(rows)
        return self._gathered[rows]

    def _restack(self, node: fx.Node) -> Tensor:
        nodes, dim = cast("tuple[list[fx.Node], int]", (*node.args, 0)[:2])
        if dim == 0 and all(_reduces_rows(user) for user in node.users):
            nodes = sorted(nodes, key=lambda term: self._order(self._same(term)))  # any order will do
        stacked = self._stack(tuple(nodes))
        return stacked.movedim(0, dim) if dim else stacked

    def _unbind(self, source: fx.Node, dim: int) -> Packet:
        """The slices of a value along ``dim``, as a packet."""
        if (source, dim) not in self._unbound:
            tensor = self._values[source]
            self._unbound[source, dim] = self._packet(tensor.movedim(dim, 0) if dim else tensor)
        return self._unbound[source, dim]

    def _packet(self, tensor: Tensor) -> Packet:
        self._packets += 1
        return Packet(tensor, self._packets)


def _reduces_rows(node: fx.Node) -> bool:
    return node.target in _OF_ALL or (node.target is torch.ops.aten.sum.dim_IntList and node.args[1:] == ([0],))


_OF_ALL = {torch.ops.aten.all.default, torch.ops.aten.any.default, torch.ops.aten.sum.default}


def pack(constants: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Row]:
    """Rows for constants of one shape and type; equal constants get the same row."""
    alike: dict[Hashable, dict[Hashable, list[fx.Node]]] = defaultdict(dict)
    for node, tensor in constants.items():
        kind = tuple(tensor.shape), tensor.dtype, tensor.device
        content = tuple(map(repr, tensor.flatten().tolist()))  # -0.0 is not 0.0, and NaN is NaN
        alike[kind].setdefault(content, []).append(node)
    rows: dict[fx.Node, Row] = {}
    for number, equal in enumerate(alike.values()):
        packet = Packet(torch.stack([constants[nodes[0]] for nodes in equal.values()]), number)
        for index, nodes in enumerate(equal.values()):
            rows |= dict.fromkeys(nodes, Row(packet, index))
    return rows
