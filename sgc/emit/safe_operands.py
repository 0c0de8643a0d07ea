"""Keeps operators of a GPU from operands that they would assert against.

A kernel whose assertion fails leaves behind a process in which that GPU computes nothing any more. Pyro looks at
parameters and values before it draws or scores, and raises an error that can be handled. A compiled program says at its
end whether it was valid: until then, what is not valid is replaced by what does no harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

Call = Callable[..., fx.Node]
"""Appends a call of a function of tensors to a graph."""

_Arguments = tuple[Any, ...]
_Rule = Callable[[Call, fx.Node, _Arguments], tuple[fx.Node, _Arguments]]


def with_safe_operands(node: fx.Node, arguments: _Arguments, call: Call) -> tuple[fx.Node, _Arguments] | None:
    """The condition of a node's operator, a Boolean tensor, and arguments that meet it; None if it asserts nothing.

    :param node: of the program.
    :param arguments: its arguments, in the graph that ``call`` appends to.
    """
    value = node.meta.get("val")
    rule = _RULES.get(node.target)
    if rule is None or not isinstance(value, Tensor) or value.device.type == "cpu":
        return None
    return rule(call, node, arguments)


def _probability(call: Call, node: fx.Node, arguments: _Arguments) -> tuple[fx.Node, _Arguments]:
    p, *others = arguments
    holds = call(torch.bitwise_and, call(torch.ge, p, 0), call(torch.le, p, 1))
    return holds, (_chosen(call, holds, p, 0.0), *others)


def _weights(call: Call, node: fx.Node, arguments: _Arguments) -> tuple[fx.Node, _Arguments]:
    weights, *others = arguments
    total = call(torch.sum, weights, -1, True)
    positive = call(torch.bitwise_and, call(torch.gt, total, 0), call(torch.lt, total, math.inf))
    holds = call(torch.bitwise_and, positive, call(torch.all, call(torch.ge, weights, 0), -1, True))
    return holds, (_chosen(call, holds, weights, 1.0), *others)


def _rate(call: Call, node: fx.Node, arguments: _Arguments) -> tuple[fx.Node, _Arguments]:
    rate, *others = arguments
    holds = call(torch.ge, rate, 0)
    return holds, (_chosen(call, holds, rate, 0.0), *others)


def _index(call: Call, node: fx.Node, arguments: _Arguments) -> tuple[fx.Node, _Arguments]:
    table, dim, index, *others = arguments
    shape = node.all_input_nodes[0].meta["val"].shape
    size: Any = shape[dim] if shape else 1
    if not isinstance(size, int):
        size = call(torch.ops.aten.sym_size.int, table, dim)
    holds = call(torch.bitwise_and, call(torch.ge, index, 0), call(torch.lt, index, size))
    return holds, (table, dim, _chosen(call, holds, index, 0), *others)


def _chosen(call: Call, holds: fx.Node, value: fx.Node, otherwise: float) -> fx.Node:
    """The value where the condition holds, of the same shape and type."""
    chosen = call(torch.where, holds, value, otherwise)
    if "val" in value.meta:
        chosen.meta["val"] = value.meta["val"]
    return chosen


_RULES: dict[Any, _Rule] = {
    torch.ops.aten.bernoulli.default: _probability,
    torch.ops.aten.multinomial.default: _weights,
    torch.ops.aten.poisson.default: _rate,
    torch.ops.aten.gather.default: _index,
}
