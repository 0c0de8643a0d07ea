"""Options of Inductor that suit programs of many small operators.

On a CPU such a program spends its time on calls of kernels and on memory, not in kernels; on a GPU a small kernel takes
as long as its launch.
"""

from __future__ import annotations

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sgc.emit.fx.purity import is_view
from sgc.emit.fx.rewriting import elements
from sgc.emit.inductor.tuning.tuning import Tuning

# -- on any device

FEWER_CHECKS = Tuning(
    name="fewer_checks",
    what="inputs and sizes, which the guards have seen, are not asserted at every call",
    faster="steps",
    device="any",
    options=lambda compilation: {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False},
)

FEWER_FUSIONS_TRIED = Tuning(
    name="fewer_fusions_tried",
    what="of the kernels that share a buffer, each is tried for fusion only with those next to it",
    faster="compilation",
    device="any",
    options=lambda compilation: {"max_fusion_buffer_group_pairwise_attempts": 8},
)

# -- on a CPU

POOLED_BUFFERS = Tuning(
    name="pooled_buffers",
    what="memory is laid out beforehand",
    faster="steps",
    options=lambda compilation: {"memory_planning": True},
)

ONE_PIECE = Tuning(
    name="one_piece",
    what="results that the caller does not keep lie in one piece of memory with all that is computed on the way",
    faster="steps",
    # A piece of memory for each takes longer than a small program.
    options=lambda compilation: {"memory_pool": "combined"} if compilation.in_one_piece else {},
)

NO_VECTORS = Tuning(
    name="no_vectors",
    what="the loops of a small program are compiled without vectors, which takes half as long",
    faster="compilation",
    options=lambda compilation: {"cpp.simdlen": 1} if _is_small(compilation.module) else {},
)

_FEW_IN_ALL, _FEW_EACH = 4096, 24
"""Elements of a whole graph, or of each operator on average, for which loops with vectors take as long as those
without, and twice as long to compile."""


def _is_small(module: fx.GraphModule) -> bool:
    """Whether the loops of a graph are so short that vectors spare no time."""
    computed = [node for node in module.graph.nodes if node.op == "call_function" and not is_view(node)]
    values = [node.meta.get("val") for node in computed]
    sizes = [elements(value) for value in tree_leaves(values) if isinstance(value, Tensor)]
    return sum(sizes) <= max(_FEW_IN_ALL, _FEW_EACH * len(sizes))


# -- on a GPU

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
