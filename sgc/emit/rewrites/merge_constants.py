"""Merges equal tensors of the module."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import attribute, is_functional, literal, replace

LIMIT = 1 << 20
"""The largest tensor, in bytes, that is compared element by element or computed at compile time."""


def merge_constants(module: fx.GraphModule) -> bool:
    """Merge equal literals: equal in dtype, shape, strides, device and every bit.

    Of other tensors, which the user may change, only several reads of the very same one are merged.
    """
    if not is_functional(module.graph):
        return False
    first: dict[Hashable, fx.Node] = {}
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        kept = first.setdefault(_identity(node), node)
        if kept is not node:
            replace(node, kept)
            changed = True
    return changed


def _identity(node: fx.Node) -> Hashable:
    tensor = literal(node)
    if tensor is None or tensor.layout is not torch.strided or tensor.numel() * tensor.itemsize > LIMIT:
        return id(attribute(node))
    return (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device, bytes(raw_bytes(tensor).tolist()))


def raw_bytes(tensor: Tensor) -> Tensor:
    """The elements as bits: -0.0 differs from 0.0, and NaN equals itself."""
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
