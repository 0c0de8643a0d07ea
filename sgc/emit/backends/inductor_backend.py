"""The Inductor backend: the rewritten module, compiled to C++ or Triton and called as directly as that can be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends.protocol import BackgroundBackend
from sgc.emit.fx.lift_tensors import lift_tensors
from sgc.emit.fx.rewriting import results_of
from sgc.emit.inductor.background.compile_request import Answer, CompileRequest, GraphRequest
from sgc.emit.inductor.background.precompiled import Precompiled
from sgc.emit.inductor.compile_graph import Runner, compile_graph
from sgc.emit.inductor.compiled_step import BuiltStep, build_particle_loop, build_step
from sgc.emit.inductor.cpp_entry import direct
from sgc.emit.inductor.cuda_graphs import ReplayedCall, replayed_on
from sgc.emit.particle_loop import ParticleLoop
from sgc.emit.rewrites.optimize import Optimized, optimize
from sgc.emit.rollback import written_inputs
from sgc.graph.aliasing import shares_storage
from sgc.native.switches import is_on


class Inductor(BackgroundBackend):
    """Compiles loss modules and whole steps.

    :param compile_graph: what compiles a graph, in place of :func:`sgc.emit.inductor.compile_graph.compile_graph`; for
        tests and measurements.
    :param runs_at_once: whether modules and steps also have what runs until they are compiled.
    """

    name = "inductor"
    needs_compiler = True

    def __init__(self, compile_graph: Callable[..., Runner] = compile_graph, *, runs_at_once: bool = False) -> None:
        self._compile_graph = compile_graph
        self._runs_at_once = runs_at_once

    def in_background(self) -> Inductor | None:
        # A subclass, or another function, builds in a way of its own.
        usual = type(self) is Inductor and self._compile_graph is compile_graph
        # What follows on the graph draws as the graph does, whoever compiles it.
        ordered = partial(compile_graph, ordered=True)
        return Inductor(ordered, runs_at_once=True) if usual and is_on("cpp_entry") else None

    def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
        optimized = optimize(module, examples, rng=rng, keep_plain=self._runs_at_once)
        gpu, report = replayed_on(optimized.module, examples, optimized.report)
        return replace(optimized, report=report, gpu=gpu)

    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        module = optimized.module
        written = sorted(written_inputs(module))
        if _on_the_cpu(examples, written):
            run = self._direct(module, examples, rng, written)
        else:
            run = self._compile_graph(module, examples, rng)
        return run if optimized.gpu is None else ReplayedCall(run, written, optimized.gpu)

    def request(self, optimized: Optimized, examples: list[Any], rng: Rng) -> CompileRequest | None:
        module = optimized.module
        if not _on_the_cpu(examples, sorted(written_inputs(module))):
            return None
        lifted, takes, attributes = lift_tensors(module)
        everything = [*examples, *attributes]
        results = len(results_of(module))
        return CompileRequest((GraphRequest(lifted, [everything[i] for i in takes], rng, False, results),))

    def of_answer(self, answer: Answer) -> Inductor:
        return Inductor(Precompiled(answer).compile_graph)

    def build_step(
        self, module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        return build_step(module, tensors, rng, updated, self._compile_graph, runs_at_once=self._runs_at_once)

    def build_particle_loop(self, loop: ParticleLoop, tensors: Sequence[Tensor], rng: Rng) -> BuiltStep:
        return build_particle_loop(loop, tensors, rng, self._compile_graph, runs_at_once=self._runs_at_once)

    def draws_as_torch(self, rng: Rng) -> bool:
        return rng == "torch"

    def _direct(self, module: fx.GraphModule, examples: list[Any], rng: Rng, written: list[int]) -> Runner:
        """What Inductor compiles, called without torch's layers around it where it is what is expected."""
        lifted, takes, attributes = lift_tensors(module)
        everything = [*examples, *attributes]
        run = self._compile_graph(lifted, [everything[i] for i in takes], rng)
        called = direct(run, takes, attributes, len(results_of(module)), written)
        return called or (lambda *inputs: run(*((*inputs, *attributes)[i] for i in takes)))


def _on_the_cpu(examples: Sequence[Tensor], written: Sequence[int]) -> bool:
    """Whether all is on the CPU, and nothing that is written shares memory with something else."""
    return all(tensor.device.type == "cpu" for tensor in examples) and not shares_storage(examples, written)
