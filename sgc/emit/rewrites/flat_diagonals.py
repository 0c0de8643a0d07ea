"""Writes what is done to every (n + 1)th number of an n by n matrix, laid out flat, as done to its diagonal.

Pyro's Gaussian processes add a jitter so (``K.view(-1)[:: n + 1] += jitter``). A compiler that fuses loops over rows
and columns with loops over flat numbers divides indices, simplifies nested divisions for seconds, and generates code
that divides; of a diagonal it asks whether two indices are equal.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import fx

from sgc.emit.fx.rewriting import call, is_functional, is_static, replace, same_kind, tensor_of, value_of

_aten = torch.ops.aten


def take_diagonals(module: fx.GraphModule) -> bool:
    """Replace slices, writes of slices and gradients of slices that are diagonals of square matrices."""
    graph = module.graph
    if not is_functional(graph):
        return False
    changed = False
    for node in list(graph.nodes):
        rule = _RULES.get(node.target)
        changed |= rule is not None and rule(node)
    return changed


class _Slice(NamedTuple):
    """The arguments of a slice; some are left out where they are as here."""

    dim: Any = 0
    start: Any = None
    end: Any = None
    step: Any = 1


def _side(numbers: int, arguments: tuple[Any, ...]) -> int | None:
    """The side of the matrix of which a slice of so many numbers is the diagonal; None if it is of none."""
    taken = _Slice(*arguments)
    side = math.isqrt(numbers)
    end = numbers if taken.end is None else taken.end
    whole = taken.dim in (0, -1) and taken.start in (0, None) and isinstance(end, int) and end >= numbers
    return side if whole and side > 1 and side * side == numbers and taken.step == side + 1 else None


def _side_of(flat: Any, arguments: tuple[Any, ...]) -> int | None:
    held = tensor_of(flat)
    if held is None or held.dim() != 1 or not is_static(held) or not held.is_contiguous():
        return None
    return _side(held.numel(), arguments)


def _read(node: fx.Node) -> bool:
    """For ``slice(flat)``."""
    flat, *arguments = node.args
    if node.kwargs or _side_of(flat, tuple(arguments)) is None:
        return False
    diagonal = call(node, _aten.diagonal.default, _matrix(flat, node))
    if not same_kind(value_of(diagonal), value_of(node)):
        node.graph.erase_node(diagonal)
        return False
    replace(node, diagonal)
    return True


def _write(node: fx.Node) -> bool:
    """For ``slice_scatter(flat, values)``."""
    flat, values, *arguments = node.args
    side, written = _side_of(flat, tuple(arguments)), tensor_of(values)
    if node.kwargs or side is None or written is None or written.dtype != value_of(node).dtype:
        return False
    chosen = call(node, _aten.where.self, _on_diagonal(node, side), _as_row(values, node), _matrix(flat, node))
    _replace_flat(node, chosen)
    return True


def _gradient(node: fx.Node) -> bool:
    """For ``slice_backward(gradient, [n * n])``."""
    gradient, sizes, *arguments = node.args
    flat = isinstance(sizes, (list, tuple)) and len(sizes) == 1 and isinstance(sizes[0], int)
    side = _side(value_of(node).numel(), tuple(arguments)) if flat else None
    own = tensor_of(node)
    if node.kwargs or side is None or own is None or not own.is_contiguous():
        return False
    zeros = call(node, _aten.full.default, [side, side], 0.0, dtype=own.dtype, device=own.device)
    chosen = call(node, _aten.where.self, _on_diagonal(node, side), _as_row(gradient, node), zeros)
    _replace_flat(node, chosen)
    return True


def _matrix(flat: Any, before: fx.Node) -> fx.Node:
    """The square matrix of which these are the numbers."""
    side = math.isqrt(value_of(flat).numel())
    origin = flat.args[0] if flat.target is _aten.view.default else None
    held = tensor_of(origin)
    if isinstance(origin, fx.Node) and held is not None and tuple(held.shape) == (side, side) and held.is_contiguous():
        return origin
    return call(before, _aten.view.default, flat, [side, side])


def _on_diagonal(before: fx.Node, side: int) -> fx.Node:
    device = value_of(before).device
    numbers = call(before, _aten.arange.start_step, 0, side, 1, dtype=torch.int64, device=device, pin_memory=False)
    rows = call(before, _aten.view.default, numbers, [side, 1])
    return call(before, _aten.eq.Tensor, rows, numbers)


def _as_row(values: Any, before: fx.Node) -> fx.Node:
    return call(before, _aten.unsqueeze.default, values, 0)


def _replace_flat(node: fx.Node, matrix: fx.Node) -> None:
    """Let a matrix stand for its numbers, and for what is the matrix again."""
    for user in list(node.users):
        own = tensor_of(user)
        if user.target is _aten.view.default and own is not None and same_kind(own, value_of(matrix)):
            replace(user, matrix)
    replace(node, call(node, _aten.view.default, matrix, [value_of(matrix).numel()]))


_RULES = {
    _aten.slice.Tensor: _read,
    _aten.slice_scatter.default: _write,
    _aten.slice_backward.default: _gradient,
}
