"""The update that was moved out of a training step, as a graph: what its kernels compute, operator by operator.

It is for a step that runs before anything is compiled. As torch's optimizers do, it computes in place where it can: a
new tensor for each operator takes longer than the arithmetic on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.rewriting import attribute, same_kind, value_of

_aten = torch.ops.aten


@dataclass
class OutlinedUpdate:
    """What the kernels of a step compute, if the step has not halted; if it has, they write what was there.

    :param nodes: in the order of the step's graph.
    :param new: the new value of each input that they write.
    :param given: what the rest of the step gives them, by position among its results.
    :param halt: whether the step has halted.
    """

    nodes: Sequence[fx.Node]
    new: Mapping[fx.Node, fx.Node]
    given: Mapping[fx.Node, int]
    halt: fx.Node | None

    def graph(self, results: int) -> fx.GraphModule:
        """A module of ``(*inputs of the step, *results of the rest)`` that writes the new values, and gives nothing.

        It is not to be run for a step that has halted.

        :param results: how many the rest gives.
        """
        whole = next(iter(self.new)).graph
        graph, attributes = fx.Graph(), dict[str, Any]()
        copies: dict[fx.Node, fx.Node] = {}
        for node in whole.find_nodes(op="placeholder"):
            copies[node] = graph.node_copy(node)
        brought = [graph.placeholder(f"result_{number}") for number in range(results)]
        copies |= {node: brought[position] for node, position in self.given.items()}

        def copy_of(node: fx.Node) -> fx.Node:
            node = self._unless_halted(node)
            if node not in copies:  # a literal number
                attributes[str(node.target)] = attribute(node)
                copies[node] = graph.get_attr(str(node.target))
            return copies[node]

        written = {target: set(self._written_into(target)) for target in self.new}
        in_place = set().union(*written.values(), self._into_temporaries())
        for node in self._computed:
            copies[node] = graph.node_copy(node, copy_of)
            if node in in_place:
                copies[node].target = _in_place(node)
        for target, value in self.new.items():
            if self._unless_halted(value) not in written[target]:
                graph.call_function(_aten.copy_.default, (copies[target], copy_of(value)))
        graph.output([])
        return graph_module(attributes, graph)

    def _unless_halted(self, node: fx.Node) -> fx.Node:
        """A value, in a step that has not halted."""
        while node.target is _aten.where.self and node.args[0] is self.halt:
            node = _operand(node, 2)
        return node

    @cached_property
    def _computed(self) -> dict[fx.Node, int]:
        """The nodes that are computed, each with its place in their order."""
        computed = [node for node in self.nodes if self._unless_halted(node) is node]
        return {node: place for place, node in enumerate(computed)}

    @cached_property
    def _last_readers(self) -> dict[fx.Node, fx.Node | None]:
        """The node that is the last to read a value; None for a value that is read at the end."""
        last: dict[fx.Node, fx.Node | None] = {}
        for node in self._computed:
            last.update((self._unless_halted(operand), node) for operand in node.all_input_nodes)
        last.update((self._unless_halted(value), None) for value in self.new.values())
        return last

    def _takes_over(self, node: fx.Node) -> fx.Node | None:
        """The operand whose memory a node could be computed into, since nobody reads it later."""
        if _in_place(node) is None:
            return None
        first = self._unless_halted(_operand(node, 0))
        return first if self._last_readers[first] is node and same_kind(value_of(first), value_of(node)) else None

    def _written_into(self, target: fx.Node) -> Iterator[fx.Node]:
        """The nodes that are computed into an input: a row of them that begins with it and ends with its new value."""
        row: list[fx.Node] = []
        value = self._unless_halted(self.new[target])
        while value is not target:
            first = self._takes_over(value) if value in self._computed else None
            if first is None:
                return
            row.append(value)
            value = first
        yield from row

    def _into_temporaries(self) -> Iterator[fx.Node]:
        """The nodes that are computed into the memory of a value that was computed here."""
        return (node for node in self._computed if self._takes_over(node) in self._computed)


def _operand(node: fx.Node, position: int) -> fx.Node:
    operand = node.args[position]
    assert isinstance(operand, fx.Node)
    return operand


def _in_place(node: fx.Node) -> Any:
    """The operator that writes what a node computes into its first operand; None if there is none."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    packet = getattr(_aten, f"{node.target.overloadpacket.__name__}_", None)
    return getattr(packet, node.target._overloadname, None)
