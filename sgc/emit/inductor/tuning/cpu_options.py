"""Options of Inductor that suit programs of many small operators on a CPU.

Such a program spends its time on calls of kernels and on memory, not in kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sgc.emit.fx.purity import is_view
from sgc.emit.fx.rewriting import elements
from sgc.emit.inductor.tuning.tuning import Tuning

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

SMALL_STACKS = Tuning(
    name="small_stacks",
    what="stacks of few are looked up where they are used, and never written",
    faster="steps",
    options=lambda compilation: {"force_pointwise_cat": _has_small_stacks_only(compilation.module)},
)

NO_VECTORS = Tuning(
    name="no_vectors",
    what="the loops of a small program are compiled without vectors, which takes half as long",
    faster="compilation",
    options=lambda compilation: {"cpp.simdlen": 1} if _is_small(compilation.module) else {},
)

_FEW_ROWS, _FEW_ELEMENTS = 8, 4096
"""Up to so many operands, and so many elements in all, a stack is cheaper to look up than to write and read: for each
element that is asked for, one operand after another is asked whether it is there. Inductor does one or the other with
all stacks of a graph."""

_FEW_IN_ALL, _FEW_EACH = 4096, 24
"""Elements of a whole graph, or of each operator on average, for which loops with vectors take as long as those
without, and twice as long to compile."""

_STACKS = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}


def _has_small_stacks_only(module: fx.GraphModule) -> bool:
    stacks = [node for node in module.graph.nodes if node.target in _STACKS]
    return all(len(node.args[0]) <= _FEW_ROWS and elements(node.meta["val"]) <= _FEW_ELEMENTS for node in stacks)


def _is_small(module: fx.GraphModule) -> bool:
    """Whether the loops of a graph are so short that vectors spare no time."""
    computed = [node for node in module.graph.nodes if node.op == "call_function" and not is_view(node)]
    values = [node.meta.get("val") for node in computed]
    sizes = [elements(value) for value in tree_leaves(values) if isinstance(value, Tensor)]
    return sum(sizes) <= max(_FEW_IN_ALL, _FEW_EACH * len(sizes))
