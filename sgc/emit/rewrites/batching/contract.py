"""Turns a sum of matrix products, or of column sums, into one product or sum.

The gradient of a weight that is used at many times is the sum of a product for each: of the output's gradients and the
inputs of that time. It is one product of all of these, the times below one another; likewise a bias' gradient is one
sum of all the output's gradients.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sgc.emit.rewrites.batching.operations import LARGEST, RESHAPES, call, tensor_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _Contraction:
    """``left.t() @ right``, possibly transposed; without ``right`` the column sums of ``left``."""

    left: fx.Node
    right: fx.Node | None = None
    transposed: bool = False

    def is_worthwhile(self) -> bool:
        """Whether the operands, which are stacked, are small or no larger than the results, which need not be added."""
        matrices = self._matrices()
        sizes = [matrix.numel() for matrix in matrices]
        result = math.prod(matrix.shape[-1] for matrix in matrices)
        return max(sizes) <= LARGEST or (self.right is not None and sum(sizes) <= 2 * result)

    def kind(self) -> tuple[object, ...]:
        return (self.transposed, *((matrix.shape, matrix.dtype) for matrix in self._matrices()))

    def _matrices(self) -> list[Tensor]:
        nodes = [self.left] if self.right is None else [self.left, self.right]
        return [held for node in nodes if (held := tensor_of(node)) is not None]


def contract(graph: fx.Graph, terms: Iterable[fx.Node], fewest: int) -> tuple[list[fx.Node], list[fx.Node]]:
    """Contractions that each sum at least ``fewest`` terms, and the remaining terms."""
    groups, others = _groups(terms, fewest)
    return [_join(graph, group) for group in groups], others


def contracts(terms: Iterable[fx.Node], fewest: int) -> bool:
    """Whether at least ``fewest`` of the terms are one contraction."""
    return bool(_groups(terms, fewest)[0])


def _groups(terms: Iterable[fx.Node], fewest: int) -> tuple[list[list[_Contraction]], list[fx.Node]]:
    alike: dict[object, dict[fx.Node, _Contraction]] = defaultdict(dict)
    others = []
    for term in terms:
        contraction = _contraction(term)
        if contraction is None:
            others.append(term)
        else:
            alike[contraction.kind()][term] = contraction
    for kind, group in list(alike.items()):
        if len(group) < fewest:
            others += alike.pop(kind)
    return [list(group.values()) for group in alike.values()], others


def _contraction(term: fx.Node) -> _Contraction | None:
    """The contraction that a term is; None if it is none, is used elsewhere too, or is not worthwhile."""
    node, transposed = _source(term)
    contraction = None
    if node.target is aten.mm.default and _dims(term) == 2:
        left, right = node.args
        if isinstance(left, fx.Node) and left.target is aten.t.default:
            contraction = _Contraction(_node(left.args[0]), _node(right), transposed)
    elif node.target is aten.sum.dim_IntList and _dims(term) == 1 and node.args[1] == [0] and not node.kwargs:
        matrix = _node(node.args[0])
        contraction = _Contraction(matrix) if _dims(matrix) == 2 else None
    alone = len(node.users) == 1
    return contraction if alone and contraction is not None and contraction.is_worthwhile() else None


def _source(term: fx.Node) -> tuple[fx.Node, bool]:
    """The node before transposes of a matrix, or reshapes of a vector, that nothing else uses; and if transposed."""
    node, transposed, is_matrix = term, False, _dims(term) == 2
    while len(node.users) == 1:
        if is_matrix and node.target is aten.t.default:
            transposed = not transposed
        elif _dims(term) != 1 or node.target not in RESHAPES:
            break
        node = _node(node.args[0])
    return node, transposed


def _node(argument: object) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def _dims(node: fx.Node) -> int | None:
    held = tensor_of(node)
    return None if held is None else held.dim()


def _join(graph: fx.Graph, group: list[_Contraction]) -> fx.Node:
    left = _below_each_other(graph, [contraction.left for contraction in group])
    right = [contraction.right for contraction in group if contraction.right is not None]
    if not right:
        return call(graph, aten.sum.dim_IntList, left, [0])
    joined = call(graph, aten.mm.default, call(graph, aten.t.default, left), _below_each_other(graph, right))
    return call(graph, aten.t.default, joined) if group[0].transposed else joined


def _below_each_other(graph: fx.Graph, matrices: list[fx.Node]) -> fx.Node:
    stack = call(graph, aten.stack.default, matrices)
    count, rows, columns = stack.meta["val"].shape
    return call(graph, aten.view.default, stack, [count * rows, columns])
