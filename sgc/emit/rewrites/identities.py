"""Removes arithmetic that changes nothing.

Each rule gives the same elements, bit by bit, with two exceptions: the sign of a NaN, and ``sum`` over a single
element, which turns -0.0 into 0.0 in eager torch (Inductor removes it likewise). ``x + 0.0`` stays, for -0.0 + 0.0 is
0.0; ``x - 0.0`` and ``x + -0.0`` go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.purity import is_view
from sgc.emit.fx.rewriting import (
    call,
    exposed,
    is_functional,
    is_static,
    lineage,
    literal,
    replace,
    same_kind,
    tensor_of,
)
from sgc.emit.rewrites.fold_constants import FULL, uniform

_aten = torch.ops.aten


def remove_identities(module: fx.GraphModule) -> bool:
    """Replace each node that equals one of its arguments, or the negative of one."""
    graph = module.graph
    if not is_functional(graph):
        return False
    changed = False
    leaving = exposed(graph)
    for node in list(graph.nodes):
        rule = _RULES.get(node.target)
        simpler = rule(node) if rule is not None else None
        if simpler is None or not (simpler.operator is _aten.neg.default or _may_alias(node, simpler.source, leaving)):
            continue
        made = simpler.source
        if simpler.operator is not None:
            made = call(node, simpler.operator, simpler.source, *simpler.arguments)
        if node in leaving:
            leaving.update(lineage(made))
        replace(node, made)
        changed = True
    return changed


@dataclass(frozen=True)
class Simpler:
    """What a node equals: ``source``, or ``operator(source, *arguments)``."""

    source: fx.Node
    operator: Any = None
    arguments: tuple[Any, ...] = ()


def _may_alias(node: fx.Node, source: fx.Node, leaving: set[fx.Node]) -> bool:
    """Whether ``node`` may share the memory of ``source``."""
    if any(user.target is _aten.as_strided.default for user in node.users):
        return False  # it counts from the start of the memory
    owner = list(lineage(source))[-1]
    if node not in leaving or owner in set(lineage(node)):
        return True
    return owner.op == "call_function" and owner not in leaving


def number_of(value: Any) -> float | int | None:
    """The one number that all elements of an argument equal: of a number, a ``full`` or a literal."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if not isinstance(value, fx.Node):
        return None
    if value.target is FULL:
        return number_of(value.args[1])
    tensor = literal(value)
    element = uniform(tensor) if tensor is not None and tensor.layout is torch.strided else None
    return number_of(element)


def _equal(node: fx.Node, source: Any) -> Simpler | None:
    """``source`` if it has the shape, dtype and strides of ``node``."""
    own, other = tensor_of(node), tensor_of(source)
    if own is None or other is None or not is_static(own) or not is_static(other):
        return None
    return Simpler(source) if same_kind(own, other) else None


def _operands(node: fx.Node) -> tuple[Any, Any] | None:
    """The two arguments, unless there are keywords or the numbers are complex (whose products mix their parts)."""
    own = tensor_of(node)
    plain = len(node.args) == 2 and not node.kwargs and own is not None and not own.dtype.is_complex
    return (node.args[0], node.args[1]) if plain else None


def _scaled(node: fx.Node, value: Any, factor: Any) -> Simpler | None:
    """``value`` or its negative, if it is multiplied with or divided by a ``factor`` of 1 or -1."""
    number = number_of(factor)
    equal = _equal(node, value) if number in (1, -1) else None
    return equal if equal is None or number == 1 else Simpler(equal.source, _aten.neg.default)


def _mul(node: fx.Node) -> Simpler | None:
    operands = _operands(node)
    return (_scaled(node, *operands) or _scaled(node, *operands[::-1])) if operands is not None else None


def _div(node: fx.Node) -> Simpler | None:
    operands = _operands(node)
    return _scaled(node, *operands) if operands is not None else None


def _add(node: fx.Node) -> Simpler | None:
    operands = _operands(node)
    if operands is None:
        return None
    one, other = operands
    if _is_zero(other, node, negative=True):
        return _equal(node, one)
    return _equal(node, other) if _is_zero(one, node, negative=True) else None


def _sub(node: fx.Node) -> Simpler | None:
    operands = _operands(node)
    if operands is None or not _is_zero(operands[1], node, negative=False):
        return None
    return _equal(node, operands[0])


def _is_zero(value: Any, node: fx.Node, *, negative: bool) -> bool:
    """Whether adding ``value`` changes no element: for floating point, a zero of the right sign."""
    number, tensor = number_of(value), tensor_of(node)
    if number is None or number != 0 or tensor is None:
        return False
    if not tensor.dtype.is_floating_point:
        return True
    return (math.copysign(1.0, number) < 0) == negative


def _pow(node: fx.Node) -> Simpler | None:
    operands = _operands(node)
    return _equal(node, operands[0]) if operands is not None and number_of(operands[1]) == 1 else None


def _neg(node: fx.Node) -> Simpler | None:
    inner = node.args[0]
    if isinstance(inner, fx.Node) and inner.target is _aten.neg.default:
        return _equal(node, inner.args[0])
    return None


def _idle(node: fx.Node) -> Simpler | None:
    """A view of the whole tensor, or a copy, in a graph without writes."""
    return _equal(node, node.args[0])


def _viewed_back(node: fx.Node) -> Simpler | None:
    """A view of a view that has the shape of what is viewed: all keep the order of the numbers."""
    source: Any = node.args[0]
    while isinstance(source, fx.Node):
        equal = _equal(node, source)
        if equal is not None or source.target not in _VIEWS:
            return equal
        source = source.args[0]
    return None


_VIEWS = {_aten.view.default, _aten._unsafe_view.default}


def _copy(node: fx.Node) -> Simpler | None:
    """The functional form of ``x.copy_(y)``, where ``x`` gives only shape and dtype."""
    return _equal(node, node.args[1])


def _written_back(node: fx.Node) -> Simpler | None:
    """Numbers that are written where they were read: ``x[i] += y`` writes what it has added into ``x`` once more."""
    whole, part, *places = node.args
    while isinstance(part, fx.Node) and part.target in (_aten.copy.default, _aten.clone.default):
        copied = part.args[1] if part.target is _aten.copy.default else part.args[0]
        own, other = tensor_of(part), tensor_of(copied)
        if own is None or other is None or own.dtype != other.dtype or own.shape != other.shape:
            return None
        part = copied
    if not isinstance(part, fx.Node) or part.target is not _READ[node.target] or part.kwargs or node.kwargs:
        return None
    return _equal(node, whole) if part.args[1:] == tuple(places) and _same(part.args[0], whole) else None


def _same(one: Any, other: Any) -> bool:
    """Whether two nodes are one, or the same view of one."""
    if one is other:
        return True
    views = isinstance(one, fx.Node) and isinstance(other, fx.Node) and is_view(one) and one.target is other.target
    return views and one.args == other.args and one.kwargs == other.kwargs


_READ: dict[Any, Any] = {
    _aten.slice_scatter.default: _aten.slice.Tensor,
    _aten.select_scatter.default: _aten.select.int,
    _aten.diagonal_scatter.default: _aten.diagonal.default,
}


def _sum(node: fx.Node) -> Simpler | None:
    """A sum of one element each is a change of shape."""
    source, own = node.args[0], tensor_of(node)
    summed = tensor_of(source)
    if own is None or summed is None or own.dtype != summed.dtype or not (is_static(own) and is_static(summed)):
        return None
    if summed.numel() == 0 or own.numel() != summed.numel():
        return None
    assert isinstance(source, fx.Node)
    reshaped = Simpler(source, _aten.view.default, (list(own.shape),)) if own.is_contiguous() else None
    return _equal(node, source) or reshaped


_RULES: dict[Any, Callable[[fx.Node], Simpler | None]] = {
    _aten.mul.Tensor: _mul,
    _aten.mul.Scalar: _mul,
    _aten.div.Tensor: _div,
    _aten.div.Scalar: _div,
    _aten.add.Tensor: _add,
    _aten.add.Scalar: _add,
    _aten.sub.Tensor: _sub,
    _aten.sub.Scalar: _sub,
    _aten.pow.Tensor_Scalar: _pow,
    _aten.neg.default: _neg,
    _aten.copy.default: _copy,
    _aten.sum.default: _sum,
    _aten.sum.dim_IntList: _sum,
    **dict.fromkeys(_READ, _written_back),
    **dict.fromkeys(_VIEWS, _viewed_back),
    **dict.fromkeys(
        (
            *(_aten.expand.default, _aten.alias.default),
            *(_aten.detach.default, _aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.slice.Tensor),
            *(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.clone.default),
            *(_aten._to_copy.default, _aten.lift_fresh_copy.default),
        ),
        _idle,
    ),
}
