"""Has torch draw the Bernoulli numbers that Inductor would draw otherwise.

Inductor compares uniform numbers of float32 with the probability. Those are the numbers that torch's operator compares
with it on a CPU, unless the probability is of float64; on a GPU they are others. Of the operator that fills a given
tensor Inductor makes nothing else. It fills that in the order of its memory, and ``bernoulli`` draws row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround

_BERNOULLI = torch.ops.aten.bernoulli.default


def draw_into_a_tensor(module: fx.GraphModule) -> None:
    """Have torch fill a tensor, where it would draw other numbers than Inductor, in place."""
    for node in module.graph.find_nodes(op="call_function", target=_BERNOULLI):
        value, probability = node.meta["val"], node.args[0]
        if node.kwargs or (value.device.type == "cpu" and value.dtype is not torch.float64):
            continue
        rows = call(node, torch.ops.aten.zeros_like.default, probability, memory_format=torch.contiguous_format)
        node.target = torch.ops.aten.bernoulli.Tensor
        node.args = (rows, probability)
    module.recompile()


def _of_float64(p: Tensor) -> list[Tensor]:
    return [torch.bernoulli(p)]


WORKAROUND = Workaround(
    name="bernoulli_draws",
    defect="with fallback_random, `bernoulli` of float64 draws other numbers than eager torch",
    reported="https://github.com/pytorch/pytorch/issues/188074, docs/upstream.md#bernoulli-draws-of-float64",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_of_float64, lambda: [torch.full((5, 6), 0.5, dtype=torch.float64)])],
    rewrite=draw_into_a_tensor,
    only_if=lambda compilation: compilation.rng == "torch",
)
