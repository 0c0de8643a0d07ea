"""Sums of one tensor and a multiple of another, which Inductor may take for plain ones.

Inductor makes ``a @ b + c`` one call, and looks for it without regard to ``alpha``: ``torch.add(a @ b, c, alpha=0.5)``
adds all of ``c``. So does the weight decay of an optimizer to the gradient of a weight. Written as a product and a sum
there is nothing to overlook; the two are one loop anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, value_of
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround

_aten = torch.ops.aten


def multiply_apart(module: fx.GraphModule) -> None:
    """Let sums and differences with an ``alpha`` be written as those of a product, in place."""
    for node in module.graph.nodes:
        factor = node.kwargs.get("alpha", 1)
        if factor == 1 or node.target not in (_aten.add.Tensor, _aten.sub.Tensor):
            continue
        kind = value_of(node).dtype
        term = node.args[1]
        if value_of(term).dtype is not kind:  # a number times integers would be of the default type
            term = call(node, _aten._to_copy.default, term, dtype=kind)
        node.args = (node.args[0], call(node, _aten.mul.Scalar, term, factor))
        node.kwargs = {}
    module.recompile()


def _half(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    return [torch.add(a @ b, c, alpha=0.5)]


WORKAROUND = Workaround(
    name="scaled_sums",
    defect="`torch.add(a @ b, c, alpha=0.5)` becomes `addmm` without the factor",
    reported="docs/upstream.md#a-product-of-matrices-plus-a-multiple",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_half, lambda: [torch.ones(2, 3), torch.ones(3, 4), torch.arange(4.0)])],
    rewrite=multiply_apart,
)
