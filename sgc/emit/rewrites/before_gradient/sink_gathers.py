"""Computes on a table before rows are looked up in it: ``f(table[z])`` becomes ``f(table)[z]``.

Where a discrete sample chooses parameters (``locs[z]``, ``transition[z]``), Pyro's distributions work on one row for
each element of ``z``: they normalise, clamp, take logarithms, and look up one entry. A table has a row for each value
that ``z`` can take, of which there are fewer. So what is computed of each row by itself is computed of the table, and
where an entry of each row is looked up in the end, it is looked up in the table. Its gradient then adds up in the
table first and goes through ``f`` afterwards; before, each row's went through ``f`` and all were added up.

Each element is computed by the same operators from the same numbers. Gradients differ by the order of their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sgc.emit.fx.purity import is_pure
from sgc.emit.fx.rewriting import call, depends_on_data, replace, tensor_of, value_of
from sgc.graph.effects import drop_dead, storages, written_storages

_aten = torch.ops.aten

_WITHIN = {
    *(_aten.sum.dim_IntList, _aten.logsumexp.default, _aten.amax.default, _aten.amin.default, _aten.mean.dim),
    *(_aten.all.dim, _aten.any.dim, _aten.softmax.int, _aten.log_softmax.int, _aten.cumsum.default),
    *(_aten._softmax.default, _aten._log_softmax.default, _aten.squeeze.dim, _aten.select.int, _aten.slice.Tensor),
}
"""Operators on the dims of their first argument that the second argument names."""

_SHAPED = {_aten.expand.default, _aten.reshape.default, _aten.view.default}
"""Operators that change the shape of their first argument to the second argument."""

_ALONE = {
    *(_aten.to.dtype, _aten.alias.default, _aten.detach.default, _aten._to_copy.default, _aten.clamp.default),
    *(_aten.__and__.Tensor, _aten.__or__.Tensor),
}
"""Elementwise operators that torch does not tag as pointwise."""


@dataclass(frozen=True)
class _Rows:
    """A value that is ``table[index]``."""

    table: fx.Node
    index: fx.Node

    @property
    def depth(self) -> int:
        """How many dimensions of the value are those of the index."""
        return value_of(self.index).dim()


def sink_gathers(module: fx.GraphModule) -> bool:
    """Move look-ups behind row-wise operators, in place; returns whether any moved.

    :param module: a graph of aten operators with fake values in ``meta["val"]``, before or after differentiation.
    """
    graph = module.graph
    if depends_on_data(graph):
        return False
    written = written_storages(graph.nodes)
    rows: dict[fx.Node, _Rows] = {}
    moved = False
    for node in list(graph.nodes):
        if not _is_plain(node) or storages(node) & written:
            continue
        looked_up = _looked_up(node, rows)
        if looked_up is not None and not (storages(looked_up.table) | storages(looked_up.index)) & written:
            rows[node] = looked_up
            continue
        operands = [argument for argument in node.all_input_nodes if argument in rows]
        if not operands:
            continue
        entries = _entries(node, rows)
        if entries is not None:
            replace(node, entries)
            moved = True
            continue
        made = _of_table(node, rows, operands)
        if made is not None and _is_worthwhile(made.table, node):
            rows[node] = made
            selected = call(node, _aten.index.Tensor, made.table, [made.index])
            rows[selected] = made
            replace(node, selected)
            moved = True
    drop_dead(graph)
    module.recompile()
    return moved


def _is_plain(node: fx.Node) -> bool:
    """Whether a node computes one tensor from its arguments and does nothing else."""
    known = node.target in _WITHIN or node.target in _SHAPED or node.target in _ALONE
    return tensor_of(node) is not None and (known or is_pure(node))


def _is_worthwhile(table: fx.Node, rows: fx.Node) -> bool:
    return value_of(table).numel() <= value_of(rows).numel()


def _looked_up(node: fx.Node, rows: dict[fx.Node, _Rows]) -> _Rows | None:
    """The table and the index, if the node looks rows up, or gives rows that were looked up another leading shape."""
    source = node.args[0]
    if node.target is _aten.index.Tensor:
        indices: Any = node.args[1]
        table, index = source, indices[0] if len(indices) == 1 else None
    elif node.target is _aten.index_select.default and node.args[1] == 0:
        table, index = source, node.args[2]
    elif node.target is _aten.embedding.default and len(node.args) == 2:
        table, index = source, node.args[1]
    elif isinstance(source, fx.Node) and source in rows:
        return _reindexed(node, rows[source])
    else:
        return None
    whole = tensor_of(index)
    if not isinstance(table, fx.Node) or not isinstance(index, fx.Node) or whole is None:
        return None
    return _Rows(table, index) if whole.dtype is torch.int64 and _is_worthwhile(table, node) else None


def _reindexed(node: fx.Node, rows: _Rows) -> _Rows | None:
    """A selection or expansion of looked-up rows as a look-up by a selected or expanded index."""
    given, shape = value_of(rows.index), value_of(node).shape
    tail = value_of(rows.table).shape[1:]
    if node.target is _aten.select.int:
        dim, position = node.args[1:3]
        assert isinstance(dim, int)
        if dim % (given.dim() + len(tail)) < given.dim():
            place = dim % (given.dim() + len(tail))
            return _Rows(rows.table, call(node, _aten.select.int, rows.index, place, position))
    elif node.target is _aten.expand.default and shape[len(shape) - len(tail) :] == tail:
        leading = shape[: len(shape) - len(tail)]
        return rows if leading == given.shape else _Rows(rows.table, call(node, node.target, rows.index, list(leading)))
    return None


def _entries(node: fx.Node, rows: dict[fx.Node, _Rows]) -> fx.Node | None:
    """One entry of each row, looked up in the table."""
    source = node.args[0]
    if node.target is not _aten.gather.default or not isinstance(source, fx.Node) or source not in rows:
        return None
    known, (dim, columns) = rows[source], node.args[1:3]
    assert isinstance(dim, int) and isinstance(columns, fx.Node)
    shape = [*value_of(known.index).shape, 1]
    if columns in rows or len(shape) != value_of(source).dim() or list(value_of(columns).shape) != shape:
        return None
    if dim % len(shape) != known.depth:
        return None
    column = call(node, _aten.squeeze.dim, columns, -1)
    entries = call(node, _aten.index.Tensor, known.table, [known.index, column])
    return call(node, _aten.unsqueeze.default, entries, -1)


def _of_table(node: fx.Node, rows: dict[fx.Node, _Rows], operands: Sequence[fx.Node]) -> _Rows | None:
    """The result of a row-wise operator, as rows of the operator's result on the table; None if it is not row-wise."""
    known = rows[operands[0]]
    if any(rows[operand].index is not known.index for operand in operands):
        return None
    args = _arguments(node, rows, known)
    if args is None:
        return None
    table = call(node, node.target, *args, **node.kwargs)  # type: ignore[arg-type]
    # A single number gives way to a tensor where types differ; a row may be one where the table is not.
    if value_of(table).dtype is value_of(node).dtype:
        return _Rows(table, known.index)
    node.graph.erase_node(table)
    return None


def _arguments(node: fx.Node, rows: dict[fx.Node, _Rows], known: _Rows) -> list[Any] | None:
    """The arguments of a row-wise operator on the table; None if the operator is not row-wise."""
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    if torch.Tag.pointwise in node.target.tags or node.target in _ALONE:  # type: ignore[union-attr]
        return _pointwise_arguments(node, rows, known)
    source = node.args[0]
    if not isinstance(source, fx.Node) or source not in rows or len(node.all_input_nodes) > 1 or len(node.args) < 2:
        return None
    if node.target in _WITHIN:
        return _arguments_within(node, source, known)
    if node.target is _aten.unsqueeze.default:
        return _unsqueezed(node, source, known)
    return _shape_arguments(node, source, known) if node.target in _SHAPED else None


def _pointwise_arguments(node: fx.Node, rows: dict[fx.Node, _Rows], known: _Rows) -> list[Any] | None:
    """For pointwise operators: tables instead of rows; other operands must be the same for all rows."""
    args: list[Any] = []
    dims = value_of(node).dim()
    for argument in node.args:
        if isinstance(argument, fx.Node) and argument in rows:
            if value_of(argument).dim() != dims:
                return None
            args.append(rows[argument].table)
            continue
        if isinstance(argument, fx.Node):
            other = tensor_of(argument)
            if other is None or other.dim() > dims - known.depth:
                return None
        args.append(argument)
    return args


def _arguments_within(node: fx.Node, source: fx.Node, known: _Rows) -> list[Any] | None:
    """For operators on some dims: the dims counted from the end, if all are dims of a row."""
    given, before = node.args[1], value_of(source).dim()
    dims = [given] if isinstance(given, int) else given
    if not isinstance(dims, Sequence) or not dims or any(dim % before < known.depth for dim in dims):  # type: ignore
        return None
    behind = [dim % before - before for dim in dims]  # type: ignore[operator]
    return [known.table, behind[0] if isinstance(given, int) else behind, *node.args[2:]]


def _unsqueezed(node: fx.Node, source: fx.Node, known: _Rows) -> list[Any] | None:
    """For ``unsqueeze``: the new dim counted from the end, if it is a dim of a row."""
    given, after = node.args[1], value_of(source).dim() + 1
    assert isinstance(given, int)
    place = given % after
    return None if place < known.depth else [known.table, place - after]


def _shape_arguments(node: fx.Node, source: fx.Node, known: _Rows) -> list[Any] | None:
    """For operators on shapes: the new shape of each row, if the dims of the index stay."""
    shape, index = value_of(node).shape, value_of(known.index).shape
    # New dimensions of an expanded tensor come first.
    is_longer = node.target is _aten.expand.default and len(shape) > value_of(source).dim()
    if is_longer or shape[: known.depth] != index:
        return None
    return [known.table, [value_of(known.table).shape[0], *shape[known.depth :]]]
