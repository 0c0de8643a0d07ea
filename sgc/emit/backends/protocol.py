"""What a backend is: how it turns a module that was emitted into a callable, and what the rest may ask about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.fx.rewriting import copy_of
from sgc.emit.inductor.background.compile_request import Answer, CompileRequest
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.particle_loop import ParticleLoop
from sgc.emit.rewrites.before_gradient.own_sample_density import score_own_samples
from sgc.emit.rewrites.before_gradient.sink_gathers import sink_gathers
from sgc.emit.rewrites.optimize import Optimized
from sgc.graph.effects import switches_autocast


class Backend(ABC):
    """Runs modules of loss and gradients.

    A backend is a file with a subclass, and its entry in the list of :mod:`sgc.emit.backends.registry`. Its ``name`` is
    what users pass as ``backend``; if it ``needs_compiler``, a C++ compiler is there wherever it works, and the guards
    of what it has built are asked in C++ too. If it ``takes_any_size``, a module may have formulas for sizes. If it
    ``sees_views``, what it has built sees what a program writes into one input in others that are views of the same
    memory.
    """

    name: ClassVar[str]
    needs_compiler: ClassVar[bool] = False
    takes_any_size: ClassVar[bool] = True
    sees_views: ClassVar[bool] = False

    def before_gradient(self, module: fx.GraphModule) -> fx.GraphModule:
        """The module of loss and surrogate as it is to be differentiated; the one that is given stays as it is.

        Where it switches autocast nothing moves, for then it matters where a node is.
        """
        if switches_autocast(module.graph):
            return module
        module = copy_of(module)
        sink_gathers(module)
        score_own_samples(module)
        return module

    @abstractmethod
    def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
        """The module of loss and gradients as it is to be built, and how it was rewritten.

        :param examples: tensors like its inputs, without gradients.
        """

    @abstractmethod
    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        """A callable that computes what the module computes on tensors like these.

        :param examples: those that the module writes into are copied before any run.
        :raises sgc.errors.BackendError: if it cannot work on this machine; the text says what to install.
        """

    @abstractmethod
    def draws_as_torch(self, rng: Rng) -> bool:
        """Whether what it builds draws the random numbers that eager torch would draw under one seed."""


class StepBackend(Backend):
    """A backend that compiles whole training steps too; on others the optimizer runs in Python."""

    @abstractmethod
    def build_step(
        self, module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        """A whole step (:func:`sgc.emit.train_step.emit_step`), rewritten; it is compiled when that is asked for.

        :param updated: the positions of the inputs that the optimizer writes.
        """

    @abstractmethod
    def build_particle_loop(self, loop: ParticleLoop, tensors: Sequence[Tensor], rng: Rng) -> BuiltStep:
        """A whole step of many particles (:func:`sgc.emit.particle_loop.emit_particle_loop`), likewise.

        :param tensors: examples of the step's inputs, but for the scratch.
        """


class BackgroundBackend(StepBackend):
    """A backend whose programs another process may compile, while this one runs their graphs operator by operator."""

    @abstractmethod
    def in_background(self) -> BackgroundBackend | None:
        """The same, whose modules and steps also have what runs until they are compiled; None if that is not so."""

    @abstractmethod
    def request(self, optimized: Optimized, examples: list[Any], rng: Rng) -> CompileRequest | None:
        """What another process would have to compile in place of :meth:`build`; None if it cannot."""

    @abstractmethod
    def of_answer(self, answer: Answer) -> BackgroundBackend:
        """A backend that builds, once, what another process has compiled."""
