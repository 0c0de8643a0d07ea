"""Turns an emitted fx module into a callable: as it is, compiled by Inductor, or as TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from sgc.config import Backend, Rng
from sgc.emit.backends.torchscript import compile_torchscript
from sgc.emit.fx.lazy_modules import write_python
from sgc.emit.fx.lift_tensors import lift_tensors
from sgc.emit.fx.rewriting import results_of
from sgc.emit.inductor.compile_graph import Runner, compile_graph
from sgc.emit.inductor.cpp_entry import direct
from sgc.emit.inductor.cuda_graphs import ReplayedCall, replayed_on
from sgc.emit.rewrites.optimize import Report, optimize
from sgc.emit.rollback import written_inputs
from sgc.graph.aliasing import shares_storage


@dataclass(frozen=True)
class Built:
    """A callable, the module that it computes, and how that was rewritten (not at all for the eager backend)."""

    run: Runner
    module: fx.GraphModule
    report: Report


def build(module: fx.GraphModule, tensors: Sequence[Tensor], backend: Backend, rng: Rng) -> Built:
    """A callable that computes what ``module`` computes on tensors like ``tensors``.

    Inductor and TorchScript are given the rewritten module (:mod:`sgc.emit.rewrites.optimize`); the eager backend runs
    node for node what was traced.

    :param module: a graph of aten operators that returns a list of tensors.
    :param tensors: examples of the inputs; those that the module writes into are copied before any run.
    :raises BackendError: if the backend cannot work on this machine; the text says what to install.
    """
    examples: list[Any] = [tensor.detach() for tensor in tensors]
    if backend == "eager":
        write_python(module)
        return Built(module, module, Report())
    if backend == "torchscript":
        optimized = optimize(module, examples, rng="torch", skip=("lower_elementary",))  # nothing is fused
        return Built(compile_torchscript(optimized.module, examples), optimized.module, optimized.report)
    optimized = optimize(module, examples, rng=rng)
    gpu, report = replayed_on(optimized.module, examples, optimized.report)
    written = sorted(written_inputs(optimized.module))
    if all(tensor.device.type == "cpu" for tensor in examples) and not shares_storage(examples, written):
        run = _on_the_cpu(optimized.module, examples, rng, written)
    else:
        run = compile_graph(optimized.module, examples, rng)
    if gpu is not None:
        run = ReplayedCall(run, written, gpu)
    return Built(run, optimized.module, report)


def _on_the_cpu(module: fx.GraphModule, examples: list[Any], rng: Rng, written: list[int]) -> Runner:
    """What Inductor compiles, called as directly as that can be."""
    lifted, takes, attributes = lift_tensors(module)
    everything = [*examples, *attributes]
    run = compile_graph(lifted, [everything[i] for i in takes], rng)
    found = direct(run, takes, attributes, len(results_of(module)), written)
    return found or (lambda *inputs: run(*((*inputs, *attributes)[i] for i in takes)))
