"""Computes at compile time what depends on literals alone.

The value is that of the same operator on the same elements, run by eager torch, so that it is equal to the last bit
to what the eager graph computes. A literal, here, is a tensor that the program wrote down itself; parameters, buffers
and data are inputs of the module, and a tensor that only the user holds is never folded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from sgc.emit.fx.purity import is_pure, is_view
from sgc.emit.fx.rewriting import (
    add_literal,
    call,
    exposed,
    is_functional,
    is_static,
    literal,
    replace,
    tensor_of,
)
from sgc.emit.rewrites.merge_constants import LIMIT, raw_bytes

_aten = torch.ops.aten
FULL = _aten.full.default
_FILLED_WITH: dict[Any, Any] = {
    _aten.zeros.default: 0,
    _aten.ones.default: 1,
    _aten.zeros_like.default: 0,
    _aten.ones_like.default: 1,
    _aten.new_zeros.default: 0,
    _aten.new_ones.default: 1,
}
_FILL_VALUE_AT: dict[Any, int] = {
    _aten.scalar_tensor.default: 0,
    _aten.full_like.default: 1,
    _aten.new_full.default: 2,
    _aten.fill.Scalar: 1,
}


def fold_constants(module: fx.GraphModule) -> bool:
    """Replace each value of literals by ``full`` if it is one number, else by a constant tensor.

    What is larger than :data:`~sgc.emit.rewrites.merge_constants.LIMIT` is left to be computed at run time, and so are
    views (which cost nothing) and what leaves the graph (of which the caller must own a fresh copy).
    """
    graph = module.graph
    if not is_functional(graph):
        return False
    changed = _spell_as_full(graph)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        value = _evaluate(node, values)
        if value is not None:
            values[node] = value
    leaving = exposed(graph)
    for node in reversed(list(graph.nodes)):
        if node not in values:
            continue
        if not node.users:
            # Everything that used it was folded.
            graph.erase_node(node)
            changed = True
        elif node.op != "get_attr" and node.target is not FULL and isinstance(values[node], Tensor):
            changed |= _materialise(node, values[node], fresh=node in leaving)
    return changed


def _spell_as_full(graph: fx.Graph) -> bool:
    """Write every tensor that is filled with one known number as ``full``."""
    changed = False
    for node in list(graph.nodes):
        if node.target in _FILLED_WITH:
            number = _FILLED_WITH[node.target]
        elif node.target in _FILL_VALUE_AT:
            number = node.args[_FILL_VALUE_AT[node.target]]
        else:
            continue
        tensor = tensor_of(node)
        if tensor is None or not isinstance(number, (bool, int, float)):
            continue
        if not is_static(tensor) or not tensor.is_contiguous():
            continue
        replace(node, _full(node, tensor, number))
        changed = True
    return changed


def _full(node: fx.Node, tensor: Tensor, number: Any) -> fx.Node:
    if tensor.dtype.is_floating_point:
        number = float(number)
    elif tensor.dtype is torch.bool:
        number = bool(number)
    shape = list(tensor.shape)
    return call(node, FULL, shape, number, dtype=tensor.dtype, device=tensor.device, pin_memory=False)


def _evaluate(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a node that depends on literals alone, as real tensors; None if it cannot be computed."""
    if node.op == "get_attr":
        return literal(node)
    if not is_pure(node) or any(argument not in values for argument in node.all_input_nodes):
        return None
    shapes = [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
    if not shapes or not all(is_static(leaf) for leaf in shapes):
        return None
    if sum(leaf.numel() * leaf.itemsize for leaf in shapes) > LIMIT:
        return None
    args, kwargs = tree_map_only(fx.Node, values.__getitem__, (node.args, dict(node.kwargs)))
    assert callable(node.target)
    try:
        with torch.no_grad():
            return node.target(*args, **kwargs)
    except RuntimeError:
        return None  # what fails is left to fail when the program runs, as it would have


def _materialise(node: fx.Node, value: Tensor, *, fresh: bool) -> bool:
    tensor = tensor_of(node)
    if tensor is None or value.layout is not torch.strided:
        return False
    number = uniform(value)
    if number is not None and is_static(tensor):
        replace(node, _full(node, tensor, number))
        return True
    if fresh or is_view(node):
        return False
    replace(node, add_literal(node, value.detach().clone(memory_format=torch.preserve_format)))
    return True


def uniform(tensor: Tensor) -> Any:
    """The one number that all elements equal bit by bit; None if they differ or there are none."""
    if tensor.numel() == 0 or tensor.numel() * tensor.itemsize > LIMIT or tensor.dtype.is_complex:
        return None
    raw = raw_bytes(tensor).view(tensor.numel(), -1)
    return tensor.reshape(-1)[0].item() if bool((raw == raw[:1]).all()) else None
