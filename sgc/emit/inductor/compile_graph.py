"""Compiles an emitted module by Inductor, with the options that suit graphs of many small operators."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch._inductor
import torch._inductor.config as inductor_config
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sgc.config import Rng
from sgc.emit.fx.module_laws import devices
from sgc.emit.fx.purity import is_view
from sgc.emit.fx.rewriting import depends_on_data, elements
from sgc.emit.inductor.cache_key import Generator
from sgc.emit.inductor.tuning.lean_wrapper import lean_wrapper
from sgc.emit.inductor.tuning.parallel_build import concurrent_builds
from sgc.emit.inductor.tuning.plain_strides import quick_strides
from sgc.emit.inductor.workarounds.assertion_texts import texts_for_cpp
from sgc.emit.inductor.workarounds.boolean_masks import masks_alike
from sgc.emit.inductor.workarounds.complex_numbers import type_numbers
from sgc.emit.inductor.workarounds.concatenated_memory import pieces_kept
from sgc.emit.inductor.workarounds.negative_indices import refuse_negative_indices
from sgc.emit.inductor.workarounds.order_of_draws import draw_as_torch, draws_in_order, number_draws
from sgc.emit.inductor.workarounds.own_memory import STACKS, own_memory
from sgc.emit.inductor.workarounds.reads_before_writes import reads_follow_writes
from sgc.emit.inductor.workarounds.scaled_sums import multiply_apart
from sgc.emit.inductor.workarounds.single_indices import index_by_vectors
from sgc.emit.rewrites.singular_matrices import failures_are_nan
from sgc.errors import BackendError
from sgc.native.inductor_cache import compiled

Runner = Callable[..., Sequence[Tensor]]
"""Computes a list of tensors from tensors."""

_FEW_ROWS, _FEW_ELEMENTS = 8, 4096
"""Up to so many operands, and so many elements in all, a stack is cheaper to look up than to write and read: for each
element that is asked for, one operand after another is asked whether it is there. Inductor does one or the other with
all stacks of a graph."""

_FEW_IN_ALL, _FEW_EACH = 4096, 24
"""Elements of a whole graph, or of each operator on average, for which loops with vectors take as long as those
without, and twice as long to compile."""


def compile_graph(module: fx.GraphModule, examples: list[Any], rng: Rng, *, in_one_piece: bool = False) -> Runner:
    """A callable that computes what ``module`` computes on tensors like ``examples``.

    :param module: a graph of aten operators, without in-place ones but copies into inputs, that returns a list.
    :param in_one_piece: whether its results may lie in one piece of memory, with all that is computed on the way: for a
        caller that does not keep them. (On a CPU; a piece of memory for each takes longer than a small program.)
    :raises BackendError: if Inductor cannot work on this machine; the text says what to install.
    """
    on_cpu = devices(module) <= {torch.device("cpu")}
    options = _options(module, rng, on_cpu=on_cpu)
    if in_one_piece:
        options["memory_pool"] = "combined"
    module = own_memory(module)
    failures_are_nan(module, validates=False)
    texts_for_cpp(module)
    index_by_vectors(module)
    refuse_negative_indices(module)
    multiply_apart(module)
    type_numbers(module)
    draws = None
    if rng == "torch":
        draw_as_torch(module)
        draws = number_draws(module)
    if depends_on_data(module.graph):
        _forget_values(module.graph)
    compile_it = partial(_compile, module, examples, options, None if on_cpu else _ON_A_GPU, draws)
    return compiled(compile_it, compile_it)


def _compile(
    module: fx.GraphModule,
    examples: list[Any],
    options: dict[str, Any],
    own_options: dict[str, Any] | None,
    draws: frozenset[int] | None,
) -> Runner:
    with (
        torch.no_grad(),
        inductor_config.patch(options),
        _without_advice(),
        _deep_recursion(),
        lean_wrapper(),
        concurrent_builds(),
        quick_strides(),
        masks_alike(),
        pieces_kept(),
        reads_follow_writes(),
        nullcontext() if draws is None else draws_in_order(draws),
    ):
        # Inductor has a public entry for modules (torch.compile) and this one for graphs; only this one
        # takes a graph as it is, without tracing it anew and without guards of its own at each call.
        program = torch._inductor.standalone_compile(
            module, examples, dynamic_shapes="from_example_inputs", options=own_options
        )
    if program is None:
        raise BackendError("Inductor returned nothing", remedy='please report it, or use backend="eager"')
    return program


_ON_A_GPU = {"config_patches": {"triton.autotune_at_compile_time": False}}
"""Kernels are tuned in their first run. ``standalone_compile`` would have them tuned beforehand, on random inputs: as
indices these are out of bounds, and a kernel that asserts that they are not ends all computation on the GPU."""


def _forget_values(graph: fx.Graph) -> None:
    """Take the (fake) values from a graph: Inductor has symbols of its own for sizes that depend on data."""
    for node in graph.nodes:
        for name in ("val", "unbacked_bindings"):
            node.meta.pop(name, None)


def _options(module: fx.GraphModule, rng: Rng, *, on_cpu: bool) -> dict[str, Any]:
    # On a GPU Inductor's own random numbers fuse with their use; on a CPU torch's are drawn faster.
    options: dict[str, Any] = {"fallback_random": rng == "torch" or on_cpu}
    # The guards have seen the inputs; checks of every tensor at every call take a fifth of a small step.
    options |= {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
    # Sums of a few categories are written out: over a dimension shorter than a vector Inductor loops number by number.
    options |= {"unroll_reductions_threshold": 17}
    # Kernels that share a buffer are tried in pairs; of the hundreds that a long chain has, each with those next to it.
    options |= {"max_fusion_buffer_group_pairwise_attempts": 8}
    options |= {"post_grad_custom_pre_pass": Generator()}
    if rng == "torch":
        options |= {"reorder_for_locality": False}
    if on_cpu:
        # A small model spends its time on calls of kernels and on memory, not in kernels: the calls are made from
        # C++, the memory is laid out beforehand, and small stacks are never written.
        options |= {"cpp_wrapper": True, "memory_planning": True, "cpp_wrapper_build_separate": True}
        options["force_pointwise_cat"] = _has_small_stacks_only(module)
        if _is_small(module):
            options["cpp.simdlen"] = 1  # no vectors
    else:
        # A kernel of few elements takes as long as its launch: those that do not depend on one another are one.
        options |= {"combo_kernels": True, "triton.autotune_pointwise": not _has_few_elements(module)}
    return options


def _has_small_stacks_only(module: fx.GraphModule) -> bool:
    stacks = [node for node in module.graph.nodes if node.target in STACKS]
    return all(len(node.args[0]) <= _FEW_ROWS and elements(node.meta["val"]) <= _FEW_ELEMENTS for node in stacks)


def _is_small(module: fx.GraphModule) -> bool:
    """Whether the loops of a graph are so short that vectors spare no time."""
    computed = [node for node in module.graph.nodes if node.op == "call_function" and not is_view(node)]
    values = [node.meta.get("val") for node in computed]
    sizes = [elements(value) for value in tree_leaves(values) if isinstance(value, Tensor)]
    return sum(sizes) <= max(_FEW_IN_ALL, _FEW_EACH * len(sizes))


def _has_few_elements(module: fx.GraphModule) -> bool:
    """Whether a kernel takes about as long with any number of threads in a block."""
    values = tree_leaves([node.meta.get("val") for node in module.graph.nodes])
    return all(elements(value) <= _FEW_FOR_A_GPU for value in values if isinstance(value, Tensor))


_FEW_FOR_A_GPU = 2**20


_DEEPEST = 20_000
"""Calls within calls: Inductor lays out memory recursively, some ten calls for each buffer of a long chain."""


@contextmanager
def _deep_recursion() -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


_ADVICE = {
    "torch._inductor.ir": "missing a c-shim",  # an operator that the C++ wrapper calls through Python
    "torch._inductor.standalone_compile": "artifact generation failed",  # nobody saves it
}
"""What Inductor logs, by logger, for its authors and not for those who use it."""


@contextmanager
def _without_advice() -> Iterator[None]:
    def wanted(record: logging.LogRecord) -> bool:
        return _ADVICE[record.name] not in record.msg

    for name in _ADVICE:
        logging.getLogger(name).addFilter(wanted)
    try:
        yield
    finally:
        for name in _ADVICE:
            logging.getLogger(name).removeFilter(wanted)
