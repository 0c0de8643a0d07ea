"""Indices that torch refuses, and Inductor would take.

Some operators of torch take negative indices, which count from the end, and some refuse them. Inductor writes several
of the latter by way of the former: there a negative index reads or writes another row. An index too large is an error
in either, so that is what negative ones are made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, literal, value_of
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.graph.meta_keys import IS_LITERAL

_aten = torch.ops.aten

_INDEX_AT: dict[Any, int] = {
    _aten.index_select.default: 2,
    _aten.index_add.default: 2,
    _aten.index_copy.default: 2,
    _aten.max_unpool2d.default: 1,
    _aten.max_unpool3d.default: 1,
}
"""Where the index stands among the arguments. Of the other operators (``tests/emit/inductor/test_negative_indices.py``)
Inductor takes the indices that torch takes."""

if torch.__version__ < "2.13":  # compares as versions
    _INDEX_AT |= {_aten.gather.default: 2, _aten.embedding.default: 1, _aten.nll_loss_forward.default: 1}


def refuse_negative_indices(module: fx.GraphModule) -> None:
    """Have operators that refuse negative indices refuse them under Inductor, in place."""
    for node in module.graph.nodes:
        position = _INDEX_AT.get(node.target)
        if position is None:
            continue
        index = node.args[position]
        if literal(index) is not None or IS_LITERAL.of(index):
            continue  # torch has seen it
        beyond = torch.iinfo(value_of(index).dtype).max
        negative = call(node, _aten.lt.Scalar, index, 0)
        if node.target is _aten.nll_loss_forward.default:  # which ignores the targets of one number
            counts = call(node, _aten.ne.Scalar, index, node.args[4])
            negative = call(node, _aten.logical_and.default, negative, counts)
        node.update_arg(position, call(node, _aten.where.ScalarSelf, negative, beyond, index))
    module.recompile()


def _selected(x: Tensor, index: Tensor) -> list[Tensor]:
    return [x.index_select(0, index)]


def _added(x: Tensor, index: Tensor) -> list[Tensor]:
    return [x.index_add(0, index, torch.ones(2, 3))]


def _at(*index: int) -> list[Tensor]:
    return [torch.arange(12.0).reshape(4, 3), torch.tensor(index)]


WORKAROUND = Workaround(
    name="negative_indices",
    defect="operators that refuse negative indices take them, and read or write another row",
    reported="https://github.com/pytorch/pytorch/issues/169779, https://github.com/pytorch/pytorch/issues/185885",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(each, lambda: _at(0, 1), others=lambda: _at(0, -1)) for each in (_selected, _added)],
    rewrite=refuse_negative_indices,
)
