"""Slices of the graph under construction: the part that computes one value."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

import torch
from torch import Tensor, fx

from sgc.graph.effects import AUTOCAST, DataFlow, ancestors, is_random
from sgc.tracing import tracer
from sgc.tracing.values.autocast import close


class GrowingGraph:
    """The data flow of a graph under construction, of which each question looks at the new nodes alone.

    A program asks often: a sequential plate reads each of its indices.
    """

    def __init__(self) -> None:
        self._graph: fx.Graph | None = None
        self._forget()

    def needed(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Some nodes of the capture in progress and all that they depend on, in the order of its graph."""
        self._follow(tracer.current_tracer().graph)
        return self._in_order(ancestors(nodes, self._flow.parents))

    def slice_of(self, node: fx.Node, needed: list[fx.Node]) -> tuple[fx.GraphModule, tuple[fx.Node, ...]]:
        """The part of the capture in progress that computes ``node``, with its sources as placeholders.

        :param needed: what :meth:`needed` gives for it.
        """
        capture = tracer.current_tracer()
        part = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        origins = [n for n in needed if n.op == "placeholder" or is_external(n)]
        for origin in origins:
            copies[origin] = part.placeholder(origin.name)
        switches = [n for target in AUTOCAST for n in capture.graph.find_nodes(op="call_function", target=target)]
        for other in self._in_order({*needed, *switches}) if switches else needed:
            if other not in copies and other.target is not torch._C._set_grad_enabled:
                copies[other] = part.node_copy(other, lambda argument: copies[argument])
        close(part)
        part.output(copies[node])
        return fx.GraphModule(capture.root, part), tuple(origins)

    def is_literal(self, tensor: Tensor) -> bool:
        """Whether a traced tensor depends on literals of the program alone, so that reading it needs no guard."""
        if not tracer.is_capturing():
            return False
        needed = self.needed([tracer.node_of(tensor)])
        return not any(node.op == "placeholder" or is_external(node) or is_random(node) for node in needed)

    def _follow(self, graph: fx.Graph) -> None:
        if graph is not self._graph:
            self._graph = graph
            self._forget()
        while self._nodes and tracer.is_erased(self._nodes[-1]):
            erased = self._nodes.pop()
            self._flow.take_back(erased)
            del self._position[erased]
        known = self._nodes[-1] if self._nodes else None
        added = list(takewhile(lambda node: node is not known, reversed(graph.nodes)))
        with torch._C.DisableTorchFunction():  # of the tensors only their storages are asked
            for node in reversed(added):
                self._flow.add(node)
                self._position[node] = len(self._nodes)
                self._nodes.append(node)

    def _forget(self) -> None:
        self._flow = DataFlow()
        self._nodes: list[fx.Node] = []
        self._position: dict[fx.Node, int] = {}

    def _in_order(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return sorted(nodes, key=self._position.__getitem__)


def is_external(node: fx.Node) -> bool:
    """Whether a ``get_attr`` node holds a tensor from outside, and not a literal of the program."""
    lifted = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default)
    return node.op == "get_attr" and not (node.users and all(user.target in lifted for user in node.users))
