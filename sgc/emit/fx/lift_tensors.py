"""Modules that are given all their tensors, as a program called from C++ is."""

from __future__ import annotations

from torch import Tensor, fx

from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.rewriting import attribute, literal
from sgc.graph.meta_keys import IS_LITERAL


def lift_tensors(module: fx.GraphModule) -> tuple[fx.GraphModule, list[int], list[Tensor]]:
    """A module that takes as its last inputs the tensors that it would look up, and of its other inputs what it uses.

    :return: the module; the positions of its inputs among all, those tensors behind the others; those tensors.
    """
    graph, copies = fx.Graph(), {}
    takes: list[int] = []
    attributes: list[Tensor] = []
    placeholders = module.graph.find_nodes(op="placeholder")
    for position, node in enumerate(placeholders):
        if node.users:
            takes.append(position)
            copies[node] = graph.node_copy(node)
        else:
            copies[node] = node  # unused: never read
    for node in module.graph.find_nodes(op="get_attr"):
        if isinstance(attribute(node), Tensor):
            takes.append(len(placeholders) + len(attributes))
            attributes.append(attribute(node))
            copies[node] = graph.placeholder(f"attribute_{len(attributes)}")
            copies[node].meta.update(node.meta)
            IS_LITERAL.put(copies[node], literal(node) is not None)
    graph.output(graph.graph_copy(module.graph, copies))
    return graph_module(module, graph), takes, attributes
