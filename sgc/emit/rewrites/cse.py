"""Common subexpression elimination."""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.purity import is_pure
from sgc.emit.fx.rewriting import exposed, is_functional, lineage, replace


def merge_common_subexpressions(module: fx.GraphModule) -> bool:
    """Merge equal calls of pure operators (:mod:`sgc.emit.fx.purity`): the later becomes the earlier.

    Arguments are equal if they are the same node, or equal numbers of the same type (1, 1.0 and True differ, and so do
    0.0 and -0.0); keyword arguments count, dtype and device among them. Two results that both leave the graph stay
    two tensors.
    """
    graph = module.graph
    if not is_functional(graph):
        return False
    first: dict[Hashable, fx.Node] = {}
    changed = False
    leaving = exposed(graph)
    for node in list(graph.nodes):
        if not is_pure(node):
            continue
        key = _key((node.target, node.args, node.kwargs))
        if key is None:
            continue
        kept = first.setdefault(key, node)
        if kept is node or (kept in leaving and node in leaving):
            continue
        if node in leaving:
            leaving.update(lineage(kept))
        replace(node, kept)
        changed = True
    return changed


def _key(value: Any) -> Hashable | None:
    """A key that is equal for arguments of equal type and bits; None for what cannot be compared."""
    if isinstance(value, (list, tuple)):
        parts = tuple(_key(part) for part in value)
        return None if None in parts else ("sequence", parts)
    if isinstance(value, dict):
        return _key([part for name in sorted(value) for part in (name, value[name])])
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, slice):
        return _key(("slice", value.start, value.stop, value.step))
    if isinstance(value, torch.SymInt):
        return None
    return (type(value), value)
