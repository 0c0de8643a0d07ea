"""Options of Inductor for programs of small kernels on a GPU, each of which takes as long as its launch."""

from __future__ import annotations

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sgc.emit.fx.rewriting import elements
from sgc.emit.inductor.tuning.tuning import Tuning

COMBINED_KERNELS = Tuning(
    name="combined_kernels",
    what="kernels that do not depend on one another are one",
    faster="steps",
    device="cuda",
    options=lambda compilation: {"combo_kernels": True},
)

UNTUNED_KERNELS = Tuning(
    name="untuned_kernels",
    what="where all values are small, kernels are not tuned",
    faster="compilation",
    device="cuda",
    options=lambda compilation: {"triton.autotune_pointwise": not _has_few_elements(compilation.module)},
)

_FEW = 2**20


def _has_few_elements(module: fx.GraphModule) -> bool:
    """Whether a kernel takes about as long with any number of threads in a block."""
    values = tree_leaves([node.meta.get("val") for node in module.graph.nodes])
    return all(elements(value) <= _FEW for value in values if isinstance(value, Tensor))
