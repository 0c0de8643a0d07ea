"""0-d indices, which torch takes for those of one element, and Inductor does not.

``torch.take(x, i)`` is ``x.reshape(-1)[i]`` to Inductor, and indexing with a 0-d tensor calls ``.item()``.
``x.index_add(0, i, y)`` is a write into ``x[i]``, which lacks a dim of ``y``. With a vector of one element nothing
is read and no dim is missing. (Of the other operators ``tests/emit/inductor/test_single_indices.py`` says that they are
right.)
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, replace, value_of
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround

_aten = torch.ops.aten

_OF_ONE_DIM = {
    _aten.index_select.default,
    _aten.index_add.default,
    _aten.index_copy.default,
    _aten.index_fill.int_Scalar,
    _aten.index_fill.int_Tensor,
}
"""Operators whose third argument is a vector of indices; the result has that dim for a 0-d one too."""


def index_by_vectors(module: fx.GraphModule) -> None:
    """Let 0-d indices be vectors of one element, in place."""
    for node in module.graph.nodes:
        if node.target in _OF_ONE_DIM and value_of(node.args[2]).dim() == 0:
            node.update_arg(2, call(node, _aten.view.default, node.args[2], [1]))
        elif node.target is _aten.take.default and value_of(node.args[1]).dim() == 0:
            source, index = node.args
            one = call(node, _aten.take.default, source, call(node, _aten.view.default, index, [1]))
            replace(node, call(node, _aten.view.default, one, []))
    module.recompile()


def _taken(x: Tensor, index: Tensor) -> list[Tensor]:
    return [x.take(index)]


def _added(x: Tensor, index: Tensor) -> list[Tensor]:
    return [x.index_add(0, index, torch.ones(1, 3))]


def _at(index: int) -> list[Tensor]:
    return [torch.arange(12.0).reshape(4, 3), torch.tensor(index)]


WORKAROUND = Workaround(
    name="single_indices",
    defect="0-d indices of `take` are read when the graph is made, and those of `index_add` are not compiled",
    reported="docs/upstream.md#0-d-indices",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[
        MinimalProgram(_taken, lambda: _at(1), others=lambda: _at(2), right_on=("2.14",)),
        MinimalProgram(_added, lambda: _at(1), others=lambda: _at(2)),
    ],
    rewrite=index_by_vectors,
)
