"""Follows single entries of a sample through the fx graph: what those that a mask hides can reach.

Entries keep their place through elementwise operators, until a choice by the same mask ends them. Whatever else is done
to them (a sum, an index, a write in place) counts as if every entry were in its result. So what is found untouched does
not depend on a hidden entry; what is found touched may not either.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from sgc.graph.effects import dependencies, is_random, storages, written_arguments, written_storages
from sgc.graph.sizes import shape_of, size_of

_aten = torch.ops.aten
_COPIES: set[Any] = {
    _aten.alias.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.lift_fresh_copy.default,
    _aten.to.dtype,
}
_POINTWISE: set[Any] = {*_COPIES, _aten.__and__.Tensor, _aten.__or__.Tensor}
_OF_SHAPES: set[Any] = {
    _aten.full_like.default,
    _aten.new_empty.default,
    _aten.new_full.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.ones_like.default,
    _aten.zeros_like.default,
}
_REDUCTIONS: set[Any] = {_aten.sum.dim_IntList, _aten.amax.default, _aten.argmax.default, _aten.max.dim}
_LITERAL = 1024


class EntryFlow:
    """The data flow of one fx graph, entry by entry."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._depends = dependencies(graph)
        self._written = written_storages(graph.nodes)
        self._numbers = _numbers(graph, self._written)

    def touched(self, value: fx.Node, mask: fx.Node | None, event_dims: int) -> set[fx.Node]:
        """The nodes that may depend on an entry of ``value`` that ``mask`` hides (None: on any entry).

        :param event_dims: how many of the rightmost dims of ``value`` are those of one entry.
        """
        # How many rightmost dims are an entry's own, where entries have kept their places; None where they have not.
        places: dict[fx.Node, int | None] = {value: event_dims}
        root = self._root(mask) if mask is not None else None
        hiding = None if root is None or self._is_written(root) else self._numbers[root]
        for node in self._graph.nodes:
            parents = [parent for parent in self._depends[node] if parent in places]
            if node is value or node.op == "output" or not parents or node.target in _OF_SHAPES:
                continue
            if written_arguments(node) or not set(parents).issubset(node.all_input_nodes):
                places[node] = None
                continue
            if hiding is not None and self._ends(node, places, hiding):
                continue
            places[node] = _place(node, {parent: places[parent] for parent in parents})
        return set(places)

    def _ends(self, node: fx.Node, places: dict[fx.Node, int | None], hiding: int) -> bool:
        """Whether no hidden entry passes: another value stands for each, or a zero is its factor."""
        arguments = node.args
        if node.target is _aten.where.self:
            condition, kept, other = arguments
            return places.get(kept) == 0 and other not in places and self._hides(condition, hiding)  # type: ignore[arg-type]
        if node.target is _aten.mul.Tensor:
            pairs = (arguments, arguments[::-1])
            return any(places.get(one) == 0 and self._hides(factor, hiding) for one, factor in pairs)  # type: ignore[arg-type]
        return False

    def _hides(self, node: Any, hiding: int) -> bool:
        return isinstance(node, fx.Node) and self._numbers[self._root(node)] == hiding

    def _root(self, node: fx.Node) -> fx.Node:
        """The tensor that a mask was made from by copies that are zero where it is, entry for entry."""
        while node.target in _COPIES and not self._is_written(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if node.target is _aten.to.dtype and torch.bool not in (_dtype(node), _dtype(source)):
                break
            node = source
        return node

    def _is_written(self, node: fx.Node) -> bool:
        return not self._written.isdisjoint(storages(node))


def _numbers(graph: fx.Graph, written: set[int]) -> dict[fx.Node, int]:
    """Equal numbers for nodes that have the same value; memory that is written into has none but its own."""
    known: dict[Hashable, int] = {}
    numbers: dict[fx.Node, int] = {}
    for node in graph.nodes:
        key: Hashable = node
        tied = (node, *node.all_input_nodes)
        if all(written.isdisjoint(storages(part)) for part in tied) and not is_random(node):
            if node.op == "get_attr":
                key = _literal(node) or node.target
            elif isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
                arguments = map_arg((node.args, node.kwargs), lambda part: repr(numbers[part]))
                # What autocast computes in another dtype is another value.
                key = node.target, repr(arguments), str(tree_map(_kind, node.meta.get("val")))
        numbers[node] = known.setdefault(key, len(known))
    return numbers


def _kind(value: Any) -> Any:
    return (value.dtype, shape_of(value.shape)) if isinstance(value, Tensor) else value


def _literal(node: fx.Node) -> Hashable:
    """A small constant by its value."""
    value = getattr(node.graph.owning_module, str(node.target), None)
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.numel() > _LITERAL:
        return None
    return "literal", str(value.dtype), tuple(value.shape), str(value.tolist())


def _place(node: fx.Node, places: dict[fx.Node, int | None]) -> int | None:
    """How many rightmost dims of the result are an entry's own; None if an entry may be anywhere in it."""
    dims = set(places.values())
    if len(dims) > 1:
        return None
    own = dims.pop()
    if own is None or node.target is operator.getitem:
        return own
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    source = node.args[0] if node.args else None
    if _is_pointwise(node):
        return own
    if node.target in _REDUCTIONS and source in places:
        return _reduced(node, source, own)
    if node.target is _aten.unsqueeze.default and _from_right(node.args[1], _dims(source) + 1) <= own:
        return own + 1
    if node.target is _aten.squeeze.dim and _size(source, node.args[1]) == 1:
        return own - 1 if _from_right(node.args[1], _dims(source)) < own else None
    if node.target is _aten.slice.Tensor and len(node.args) > 1 and _from_right(node.args[1], _dims(source)) < own:
        return own
    if node.target is _aten.gather.default and source not in places:
        return own if _from_right(node.args[1], _dims(source)) < own else None
    return None


def _is_pointwise(node: fx.Node) -> bool:
    if node.target is _aten.binary_cross_entropy_with_logits.default:
        return node.args[4:] == (0,)  # not reduced
    return node.target in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _reduced(node: fx.Node, source: Any, own: int) -> int | None:
    """A reduction over dims of the entries themselves."""
    over: Any = node.args[1] if len(node.args) > 1 else []
    over = over if isinstance(over, (list, tuple)) else [] if over is None else [over]
    reduced = {_from_right(dim, _dims(source)) for dim in over}
    if not reduced or max(reduced) >= own:  # without dims it is over all
        return None
    keeps = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim"))
    return own if keeps else own - len(reduced)


def _from_right(dim: Any, count: int) -> int:
    """A dim counted from the right, from 0."""
    return -1 - dim if dim < 0 else count - 1 - dim


def _dims(node: Any) -> int:
    return int(node.meta["val"].dim())


def _size(node: Any, dim: Any) -> int:
    return int(size_of(node.meta["val"].shape[dim]))


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype
