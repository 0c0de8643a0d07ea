"""Keeps Inductor from replacing a permutation of which a slice is an index.

Of a slice of a permutation that something is added at, as the gradient of a subsample is, Inductor makes another
permutation, which has lost what is noted on the node (``node.meta["custom"]``): the number of the draw. It does so only
where ``pin_memory`` is False, which is what None means.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround


def say_not_pinned(module: fx.GraphModule) -> None:
    """Let Inductor not see that a permutation is one, in place."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.randperm.default):
        node.kwargs = {**node.kwargs, "pin_memory": None}
    module.recompile()


def _subsample(x: Tensor, y: Tensor) -> list[Tensor]:
    index = torch.randperm(6)[:3]
    noise = torch.rand(3)
    return [x.index_put((index,), y, accumulate=True) * noise]


WORKAROUND = Workaround(
    name="permutations",
    defect="a permutation of which a slice is an index is replaced by one without the node's meta",
    reported="docs/upstream.md#a-slice-of-a-permutation-as-an-index",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_subsample, lambda: [torch.arange(18.0).reshape(6, 3), torch.ones(3, 3)])],
    rewrite=say_not_pinned,
    only_if=lambda compilation: compilation.rng == "torch",
)
