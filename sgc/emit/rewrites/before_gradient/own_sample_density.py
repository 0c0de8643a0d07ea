"""The density of a multivariate normal at its own sample, from the standard normal numbers of the sample.

A sample is ``loc + L @ e``, and its density asks for ``solve(L, sample - loc)``. That is ``e``, if ``L`` is lower
triangular: the solution, and its gradient with its own solution, need not be computed. It is how every
``AutoMultivariateNormal`` scores itself. The value differs from the solved one by the latter's rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.rewriting import call, depends_on_data, replace, tensor_of
from sgc.graph.effects import drop_dead, storages, written_arguments, written_storages

_aten = torch.ops.aten

_SAME_MATRIX = {_aten.alias.default, _aten.expand.default, _aten.reshape.default, _aten.view.default}
_SAME_VECTOR = {
    *_SAME_MATRIX,
    *(_aten.permute.default, _aten.t.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.numpy_T.default),
}
"""Operators that keep the elements of a vector and their order."""


def score_own_samples(module: fx.GraphModule) -> bool:
    """Replace triangular solves of a normal's own sample, in place; returns whether there were any.

    :param module: a graph of aten operators with fake values in ``meta["val"]``, before differentiation.
    """
    graph = module.graph
    if depends_on_data(graph):
        return False
    writers = [node for node in graph.nodes if written_arguments(node)]
    changed = False
    for node in list(graph.nodes):
        if node.target is not _aten.linalg_solve_triangular.default or dict(node.kwargs) != {"upper": False}:
            continue
        matched = _match(*node.args)
        if matched is not None and not any(_changes(writer, matched) for writer in writers):
            replace(node, call(node, _aten.reshape.default, matched[0], list(node.meta["val"].shape)))
            changed = True
    if changed:
        drop_dead(graph)
        module.recompile()
    return changed


def _changes(writer: fx.Node, matched: tuple[fx.Node, ...]) -> bool:
    """Whether a node writes into one of these values. In-place draws write, too."""
    written = written_storages([writer])
    return any(writer is not node and written & storages(node) for node in matched)


def _match(matrix: Any, difference: Any) -> tuple[fx.Node, ...] | None:
    """``e``, and the values on which it rests, where the difference is that of ``loc + matrix @ e`` and ``loc``."""
    size = matrix.meta["val"].shape[-1]
    if not _is_lower_triangular(matrix):
        return None
    vector = _origin(difference, size)
    if vector is None or vector.target is not _aten.sub.Tensor or vector.kwargs:
        return None
    sample, loc = (_origin(argument, size) for argument in vector.args)
    if sample is None or loc is None or sample.target is not _aten.add.Tensor or sample.kwargs:
        return None
    terms = [_origin(argument, size) for argument in sample.args]
    if loc not in terms:
        return None
    product = terms[1 - terms.index(loc)]
    if product is None or product.target not in (_aten.matmul.default, _aten.mv.default, _aten.mm.default):
        return None
    factor, numbers = product.args[0], _origin(product.args[1], size)
    same = set(_lineage(factor, _SAME_MATRIX)) & set(_lineage(matrix, _SAME_MATRIX))
    if numbers is None or not any(list(node.meta["val"].shape) == [size, size] for node in same):
        return None
    return numbers, loc, sample, product, vector, matrix


def _lineage(node: Any, operators: Collection[Any]) -> Iterator[fx.Node]:
    """The node, and the nodes that it is a reshaped form of."""
    while isinstance(node, fx.Node):
        yield node
        if node.target not in operators:
            return
        node = node.args[0]


def _origin(node: Any, size: int) -> fx.Node | None:
    """The node that computed a vector of ``size`` elements; None if it is no such vector, or an expanded one."""
    computed = None
    for step in _lineage(node, _SAME_VECTOR):
        value = tensor_of(step)
        if value is None or value.numel() != size or (value.dim() and size not in value.shape):
            return None
        computed = step
    return computed


def _is_lower_triangular(node: Any) -> bool:
    """Whether a matrix is lower triangular by construction."""
    if not isinstance(node, fx.Node) or tensor_of(node) is None:
        return False
    if node.target in _SAME_MATRIX:
        source = node.args[0]
        return _is_matrix_of(source, node) and _is_lower_triangular(source)
    if node.target is _aten.tril.default:
        diagonal = node.args[1] if len(node.args) > 1 else 0
        return isinstance(diagonal, int) and diagonal <= 0
    if node.target is _aten.mul.Tensor:
        return any(_is_matrix_of(factor, node) and _is_lower_triangular(factor) for factor in node.args)
    if node.target is _aten.add.Tensor and not node.kwargs:
        return all(_is_matrix_of(term, node) and _is_lower_triangular(term) for term in node.args)
    return node.target in (_aten.eye.default, _aten.diag_embed.default) and len(node.args) == 1


def _is_matrix_of(one: Any, other: fx.Node) -> bool:
    """Whether two nodes are single matrices of one size."""
    value, expected = tensor_of(one), tensor_of(other)
    return (
        value is not None
        and expected is not None
        and value.shape[-2:] == expected.shape[-2:]
        and value.numel() == expected.numel() == value.shape[-1] * value.shape[-2]
    )
