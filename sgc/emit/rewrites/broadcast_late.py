"""Materialises costly operands before they are broadcast.

A compiler that fuses pointwise operators computes an operand that is broadcast anew for each element that it meets: the
bias correction of Adam, ``1 - beta ** step``, for every weight of a layer. Here such an operand, if it is costly, is
said to be a strided view of itself: Inductor gives what is viewed so memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, is_functional, is_static, lineage, tensor_of

_aten = torch.ops.aten

_NANOSECONDS = {
    **dict.fromkeys(("pow", "lgamma", "digamma", "polygamma", "erfinv", "igamma", "igammac"), 20.0),
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "log2", "tanh", "sigmoid", "log_sigmoid_forward"), 1.0),
    **dict.fromkeys(("sin", "cos", "atan", "erf", "erfc", "logit", "softplus", "softplus_backward"), 1.0),
}
"""Rough time of an operator for an element, in nanoseconds: not vectorised, and vectorised."""

_WORTH = 200.0
"""Rough cost of another tensor, in nanoseconds."""


def compute_once(module: fx.GraphModule) -> bool:
    """Materialise costly broadcast operands of pointwise operators, on the CPU.

    A GPU computes them anew in less time than it takes to start another kernel.
    """
    graph = module.graph
    if not is_functional(graph):
        return False
    costs: dict[fx.Node, float] = {}  # of an element, with the pointwise nodes that lead to it
    wasted: dict[fx.Node, float] = {}
    for node in graph.nodes:
        own = tensor_of(node)
        if own is None or not _is_pointwise(node):
            continue
        sources = [source for source in _computed(node) if source in costs]
        for source in sources:
            again = own.numel() - source.meta["val"].numel()
            wasted[source] = wasted.get(source, 0.0) + costs[source] * max(again, 0)
        costs[node] = _NANOSECONDS.get(node.target.overloadpacket.__name__, 0.0) + sum(costs[s] for s in sources)
    worth = [node for node, waste in wasted.items() if waste > _WORTH and _is_plain(node.meta["val"])]
    for node in worth:
        value, users = node.meta["val"], list(node.users)
        stored = call(node.next, _aten.as_strided.default, node, list(value.shape), list(value.stride()))
        for user in users:
            user.replace_input_with(node, stored)
    return bool(worth)


def _computed(node: fx.Node) -> Iterable[fx.Node]:
    """The nodes that compute what a node reads, seen through views; not those that have memory of their own already."""
    lineages = [list(lineage(operand)) for operand in node.all_input_nodes]
    stored = _aten.as_strided.default
    return dict.fromkeys(path[-1] for path in lineages if all(step.target is not stored for step in path))


def _is_plain(value: Tensor) -> bool:
    return value.device.type == "cpu" and is_static(value) and value.is_contiguous()


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
