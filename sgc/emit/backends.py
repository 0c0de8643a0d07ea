"""Turns an emitted fx module into a callable: as it is, compiled by Inductor, or as TorchScript."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor
import torch._inductor.config as inductor_config
from torch import Tensor, fx

from sgc.config import Backend, Rng
from sgc.emit.optimize.pipeline import Report, optimize
from sgc.emit.ordering import RandomOrder
from sgc.errors import BackendError

Runner = Callable[..., Sequence[Tensor]]

_EAGER_REMEDY = 'or use backend="eager", which needs no compiler'


@dataclass(frozen=True)
class Built:
    """A callable, the module that it computes, and how that was rewritten (not at all for the eager backend)."""

    run: Runner
    module: fx.GraphModule
    report: Report


def build(module: fx.GraphModule, tensors: Sequence[Tensor], backend: Backend, rng: Rng) -> Built:
    """A callable that computes what ``module`` computes on tensors like ``tensors``.

    Inductor and TorchScript are given the rewritten module (:mod:`sgc.emit.optimize.pipeline`); the eager backend runs
    node for node what was traced.

    :param module: a graph of aten operators that returns a list of tensors.
    :param tensors: examples of the inputs; those that the module writes into are copied before any run.
    :raises BackendError: if the backend cannot work on this machine; the text says what to install.
    """
    examples: list[Any] = [tensor.detach() for tensor in tensors]
    if backend == "eager":
        return Built(module, module, Report())
    if backend == "torchscript":
        optimized = optimize(module, examples, rng="torch")
        return Built(_torchscript(optimized.module, examples), optimized.module, optimized.report)
    optimized = optimize(module, examples, rng=rng)
    return Built(_inductor(optimized.module, examples, rng), optimized.module, optimized.report)


def _inductor(module: fx.GraphModule, examples: list[Any], rng: Rng) -> Runner:
    on_cpu = not any(tensor.is_cuda for tensor in examples)
    # On a GPU Inductor's own random numbers fuse with their use; on a CPU torch's are drawn faster.
    options: dict[str, Any] = {"fallback_random": rng == "torch" or on_cpu}
    # The guards have seen the inputs; checks of every tensor at every call take a fifth of a small step.
    options |= {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
    if rng == "torch":
        options |= {"reorder_for_locality": False, "post_grad_custom_post_pass": RandomOrder()}
    try:
        with torch.no_grad(), inductor_config.patch(options):
            # Inductor has a public entry for modules (torch.compile) and this one for graphs; only this one
            # takes a graph as it is, without tracing it anew and without guards of its own at each call.
            compiled = torch._inductor.standalone_compile(
                _own_memory(module), examples, dynamic_shapes="from_example_inputs"
            )
    except Exception as error:
        raise _explained(error, examples) from error
    if compiled is None:
        raise BackendError("Inductor returned nothing", remedy=_EAGER_REMEDY)
    return compiled


def _own_memory(module: fx.GraphModule) -> fx.GraphModule:
    """A module in which operators that write into a copy of an operand get one without shared memory.

    Inductor (torch 2.13) makes that copy with the strides of the operand: of an expanded one, whose elements share
    memory, it makes a copy whose elements do, and a sum into one of them is a sum into all.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        name = getattr(node.target, "_overloadpacket", None)
        if name in _WRITES_INTO_COPY and _shares_memory(node.args[0].meta["val"]):
            with graph.inserting_before(node):
                own = graph.call_function(
                    torch.ops.aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}
                )
            own.meta["val"] = node.args[0].meta["val"].contiguous()
            node.update_arg(0, own)
    return fx.GraphModule(module, graph)


_WRITES_INTO_COPY = {
    getattr(torch.ops.aten, name)
    for name in (
        *("index_put", "_unsafe_index_put", "index_add", "index_copy", "index_fill", "masked_scatter", "masked_fill"),
        *("scatter", "scatter_add", "scatter_reduce", "select_scatter", "slice_scatter", "diagonal_scatter"),
    )
}


def _shares_memory(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _explained(error: Exception, examples: list[Tensor]) -> BackendError:
    text = f"{type(error).__name__}: {error}"
    on_cpu = not any(tensor.is_cuda for tensor in examples)
    no_compiler = "InvalidCxxCompiler" in text or (
        on_cpu and not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))
    )
    if no_compiler:
        return BackendError(
            "Inductor needs a C++ compiler and found none",
            remedy=f"install one (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install), {_EAGER_REMEDY}",
        )
    if "triton" in text.lower() and not on_cpu:
        return BackendError(f"Inductor needs Triton for CUDA: {text}", remedy=f"pip install triton, {_EAGER_REMEDY}")
    return BackendError(f"Inductor failed: {text}", remedy=f"please report it, {_EAGER_REMEDY}")


def _torchscript(module: fx.GraphModule, examples: list[Tensor]) -> Runner:
    copies = [example.clone() for example in examples]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript at each use; the documentation says so once
        return torch.jit.trace(_Tuple(module), tuple(copies), check_trace=False)


class _Tuple(torch.nn.Module):
    """TorchScript returns tuples, not lists."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.inner(*tensors))
