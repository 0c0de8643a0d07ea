"""Merges nested sums.

A density of an event is summed over the event, and a cost is the sum of that. Over a dimension shorter than a vector
Inductor computes number by number, the density too, which it fuses with its sum; over all elements it uses vectors.
"""

from __future__ import annotations

import torch
from torch import fx

from sgc.emit.fx.rewriting import call, replace, tensor_of

_aten = torch.ops.aten


def merge_sums(module: fx.GraphModule) -> bool:
    """Merge a total sum with the sums that it adds up, if nothing else uses these. Changes rounding."""
    changed = False
    for node in list(module.graph.nodes):
        if node.target is not _aten.sum.default or node.kwargs:
            continue
        summed = node.args[0]
        while _is_partial_sum(summed):
            summed = summed.args[0]
        if summed is not node.args[0]:
            replace(node, call(node, _aten.sum.default, summed))
            changed = True
    return changed


def _is_partial_sum(node: fx.Node) -> bool:
    value = tensor_of(node)
    of_numbers = value is not None and value.is_floating_point()
    return of_numbers and node.target is _aten.sum.dim_IntList and not node.kwargs and len(node.users) == 1
