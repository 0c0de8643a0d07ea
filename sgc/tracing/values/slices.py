"""Slices of the graph under construction: the part that computes one value."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.graph.effects import AUTOCAST, ancestors, dependencies, is_random
from sgc.tracing import tracer
from sgc.tracing.values.autocast import close


def slice_of(graph: fx.Graph, node: fx.Node, needed: set[fx.Node]) -> tuple[fx.GraphModule, tuple[fx.Node, ...]]:
    """The part of an unfinished graph that computes ``node``, with its sources as placeholders."""
    root = tracer.current_tracer().root
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    origins = [n for n in graph.nodes if n in needed and (n.op == "placeholder" or is_external(n))]
    for origin in origins:
        copies[origin] = part.placeholder(origin.name)
    for other in graph.nodes:
        wanted = other in needed and other not in copies and other.target is not torch._C._set_grad_enabled
        if wanted or other.target in AUTOCAST:
            copies[other] = part.node_copy(other, lambda argument: copies[argument])
    close(part)
    part.output(copies[node])
    return fx.GraphModule(root, part), tuple(origins)


def is_literal(tensor: Tensor) -> bool:
    """Whether a traced tensor depends on literals of the program alone, so that reading it needs no guard."""
    if not tracer.is_capturing():
        return False
    needed = ancestors([tracer.node_of(tensor)], dependencies(tracer.current_tracer().graph))
    return not any(node.op == "placeholder" or is_external(node) or is_random(node) for node in needed)


def is_external(node: fx.Node) -> bool:
    """Whether a ``get_attr`` node holds a tensor from outside, and not a literal of the program."""
    lifted = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default)
    return node.op == "get_attr" and not (node.users and all(user.target in lifted for user in node.users))
