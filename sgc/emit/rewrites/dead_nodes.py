"""Removes what nothing uses."""

from __future__ import annotations

from torch import fx

from sgc.config import Rng
from sgc.emit.fx.rewriting import writes
from sgc.graph.effects import ancestors, dependencies, is_effect, is_random


def drop_dead_nodes(module: fx.GraphModule, rng: Rng) -> bool:
    """Remove every node that no result, write or check needs.

    With ``rng="torch"`` a draw that nothing uses stays, for the numbers after it depend on it. With ``rng="fast"`` it
    goes.
    """
    graph = module.graph
    roots = [
        node
        for node in graph.nodes
        if is_effect(node) and (rng == "torch" or not is_random(node) or node.op == "placeholder" or writes(node))
    ]
    live = ancestors(roots, dependencies(graph))
    dead = [node for node in reversed(graph.nodes) if node not in live]
    for node in dead:
        graph.erase_node(node)
    return bool(dead)
