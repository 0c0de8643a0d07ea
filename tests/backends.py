"""Backends for tests, which take the place of sgc's own within ``sgc.emit.backends.registry.registered``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.inductor.compile_graph import Runner, compile_graph
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.particle_loop import ParticleLoop
from sgc.emit.rewrites.optimize import Optimized, Report, optimize


class UncompiledSteps(Inductor):
    """Whole steps run as they were traced: the same binding and guards, without seconds of C++ compilation.

    ``built`` counts what it has built, losses and steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.built = 0

    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        self.built += 1
        return super().build(optimized, examples, rng)

    def build_step(
        self, module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        self.built += 1
        return BuiltStep(module, Report(), list(tensors), rng, run=torch.no_grad()(module.forward))


class RunGraphs(Inductor):
    """Nothing is compiled: graphs run operator by operator, as they were traced or after all rewrites.

    ``graphs`` are those that were built.
    """

    def __init__(self, *, rewritten: bool) -> None:
        super().__init__()
        self.graphs: list[fx.GraphModule] = []
        self._rewritten = rewritten

    def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
        return optimize(module, examples, rng=rng) if self._rewritten else Optimized(module, Report())

    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        self.graphs.append(optimized.module)
        return self.runner(optimized.module, examples)

    def build_step(
        self, module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        examples = [tensor.detach() for tensor in tensors]
        optimized = self.after_gradient(module, examples, rng)
        run = self.build(optimized, examples, rng)
        return BuiltStep(optimized.module, Report(), examples, rng, run=run)

    def build_particle_loop(self, loop: ParticleLoop, tensors: Sequence[Tensor], rng: Rng) -> BuiltStep:
        examples = [tensor.detach() for tensor in (*tensors, *loop.scratch)]
        particle, finish = (self.after_gradient(part, examples, rng) for part in (loop.particle, loop.finish))
        loop = replace(loop, particle=particle.module)
        built = BuiltStep(finish.module, Report(), examples, rng, loop=loop)
        built.run = built.run_particles(*(self.build(part, examples, rng) for part in (particle, finish)))
        return built

    def runner(self, module: fx.GraphModule, examples: list[Tensor]) -> Runner:
        """What runs a graph."""
        run: Runner = torch.no_grad()(module.forward)
        return run


class Veiled:
    """What Inductor compiles, behind a callable that nobody can look into: ``Inductor(Veiled)``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._run = compile_graph(*args, **kwargs)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        return self._run(*inputs)
