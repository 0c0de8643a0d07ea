"""One compiled version of a loss, valid as long as its guards hold; built by the driver that sees every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx

from sgc.capture.leaves.autograd_functions import own_functions
from sgc.capture.python.garbage import rarely_collected
from sgc.capture.state.owners import ArgumentOwner, Owner
from sgc.capture.state.param_store import Store
from sgc.capture.state.random_state import random_state, restore_random_state
from sgc.config import Backend, Options
from sgc.emit.backends.registry import build
from sgc.emit.differentiate import Differentiated, differentiate, without_gradient
from sgc.emit.emitter import Emitted, emit_surrogate
from sgc.emit.fx.rewriting import copy_of
from sgc.emit.inductor.compiled_step import BuiltStep, build_particle_loop, build_step
from sgc.emit.particle_loop import emit_particle_loop
from sgc.emit.rewrites.before_gradient.own_sample_density import take_whitened
from sgc.emit.rewrites.before_gradient.sink_gathers import gather_last
from sgc.emit.rewrites.optimize import Report
from sgc.emit.rollback import undone_if_invalid
from sgc.emit.train_step import Update, emit_step, new_flag
from sgc.graph.effects import switches_autocast
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode
from sgc.graph.program import Check, Input, InputKind
from sgc.guards.base import Call, Guard, TensorGuard
from sgc.native import conditions, library
from sgc.native.conditions import Condition, Group
from sgc.runtime.autograd import Compiled
from sgc.runtime.averages import Averages
from sgc.runtime.generated_sources import forget_with, known_sources
from sgc.runtime.particles import Repeated, particles
from sgc.runtime.residue.leftovers import taken_from
from sgc.runtime.speculation.tally import Tally
from sgc.runtime.turns import capturing


@dataclass
class Specialization:
    """Graph, modules and guards of one version, and the runnables, each built when first needed.

    ``checks`` are those of parameters and values that are made at each call; ``store`` is where ``pyro.param`` has put
    the parameters.
    """

    graph: StochasticGraph
    emitted: Emitted
    inputs: tuple[Input, ...]
    owners: dict[str, Owner]
    options: Options
    tensors: TensorGuard
    guards: tuple[Guard, ...]
    max_plate_nesting: float
    params: tuple[str, ...]
    checks: tuple[Check, ...]
    store: Store
    holds: Callable[[Call], bool] = field(init=False)
    """Whether every guard holds for a call; the call's ``tensors`` are its inputs then."""
    tally: Tally | None = field(init=False)
    """Counts calls, if branches on samples are assumed to go one way."""
    _differentiated: Differentiated | None = None
    _steps: list[Report] = field(default_factory=list)
    _compiled: dict[tuple[bool, Backend], Compiled] = field(default_factory=dict)
    _backends: dict[bool, Backend] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.holds = conditions.watch(self.groups(), native=False)
        self.tally = Tally() if any(check.assumed for check in self.checks) else None

    def groups(self) -> list[Group]:
        """The guards, each as its conditions and whom to ask where these are not true."""
        return [(tuple(guard.conditions()), guard.miss) for guard in self.guards]

    def watch_natively(self) -> None:
        """Ask the guards in C++ from now on."""
        self.holds = conditions.watch(self.groups(), native=True)

    def miss(self, call: Call) -> str | None:
        """None if every guard holds for this call, else what the first broken one says."""
        for guard in self.guards:
            reason = guard.miss(call)
            if reason is not None:
                return reason
        return None

    def describe(self) -> Iterator[str]:
        """Every guard in words."""
        for guard in self.guards:
            yield from guard.describe()
        yield from (f"assumed: {check}" for check in self.checks if check.assumed)

    @cached_property
    def baselines(self) -> Averages:
        """The decaying-average baselines, in the order of the emitted module's inputs."""
        nodes = [self.graph.payload(key) for key in self.emitted.averages]
        return Averages([node for node in nodes if isinstance(node, BaselineNode)], self.store)

    def averages(self) -> list[Tensor]:
        """The running averages of these baselines, created as zeros where Pyro's store has none."""
        return self.baselines.tensors()

    def compiled(self, tensors: list[Tensor], *, with_gradient: bool, backend: Backend | None = None) -> Compiled:
        """The runnable for training, or for the loss alone, on its present backend or on another."""
        key = with_gradient, backend or self.backend(with_gradient=with_gradient)
        if key not in self._compiled:
            self._compiled[key] = self._build(tensors, *key)
        return self._compiled[key]

    @cached_property
    def repeats(self) -> int:
        """How often the emitted module runs in one call: once, unless there are many particles."""
        return particles(self.options)[2]

    def calls(self, *, with_gradient: bool) -> int:
        """How often it was called on its present backend, for training or for the loss alone."""
        made = self._compiled.get((with_gradient, self.backend(with_gradient=with_gradient)))
        return made.calls if made is not None else 0

    def backend(self, *, with_gradient: bool) -> Backend:
        """The backend it runs on."""
        return self._backends.get(with_gradient, self.options.backend)

    @property
    def reads_inputs_only(self) -> bool:
        """Whether the values that the program reads in Python are of arguments and constants, which no step changes."""
        fixed = {declared.name for declared in self.inputs if declared.kind in (InputKind.DATA, InputKind.CONSTANT)}
        program = self.graph.program
        assert program is not None
        return all(fixed.issuperset(guard.inputs) for guard in program.value_guards)

    def reports(self) -> Iterator[tuple[str, Report]]:
        """How each module that was built so far was rewritten: for the gradient, for the loss alone, for a step."""
        for (with_gradient, backend), compiled in self._compiled.items():
            yield f"{'loss and gradients' if with_gradient else 'loss alone'}, {backend}", compiled.report
        for report in self._steps:
            yield "whole step, inductor", report

    def steps_natively(self) -> list[Condition]:
        """That its training steps are Inductor's, as they are now."""
        read = conditions.entry(self._backends, True)
        return [conditions.equals(read, "inductor") if True in self._backends else conditions.absent(read)]

    @cached_property
    def brought(self) -> tuple[int, ...]:
        """Which of its inputs each call brings."""
        owners = [self.owners[declared.name] for declared in self.inputs]
        return tuple(position for position, owner in enumerate(owners) if isinstance(owner, ArgumentOwner))

    def use_backend(self, backend: Backend, *, with_gradient: bool) -> None:
        """Run on another backend from the next call on."""
        self._backends[with_gradient] = backend
        for key in [key for key in self._compiled if key[0] == with_gradient]:
            del self._compiled[key]

    def differentiated(self, tensors: list[Tensor]) -> Differentiated:
        """The module that computes loss and gradients."""
        if self._differentiated is None:
            with self._compiling():
                wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
                self._differentiated = differentiate(self._lean(self.emitted.module), tensors, wanted)
        return self._differentiated

    def build_step(self, tensors: list[Tensor], state: list[Tensor], update: Update) -> BuiltStep:
        """The whole step, of ``(*tensors, *state, halted)``, not compiled yet; see :mod:`sgc.emit.train_step`."""
        library.start()
        differentiated = self.differentiated(tensors)
        with self._compiling():
            if self.repeats > 1:
                loop = emit_particle_loop(differentiated, tensors, state, update, self.repeats)
                built = build_particle_loop(loop, [*tensors, *state, new_flag(differentiated.device)], self.options.rng)
                self._steps.append(built.report)
                return built
            module = emit_step(differentiated, tensors, state, update)
            updated = {*differentiated.gradient_of, *range(len(tensors), len(tensors) + len(state))}
            built = build_step(module, [*tensors, *state, new_flag(differentiated.device)], self.options.rng, updated)
        self._steps.append(built.report)
        return built

    def compile_step(self, built: BuiltStep) -> None:
        """Compile a whole step."""
        with self._compiling():
            built.compile()
            self.watch_natively()

    def written(self, tensors: list[Tensor]) -> list[Tensor]:
        """The buffers and running averages among the tensors of a call, which a step may write into."""
        kinds = [declared.kind for declared in self.inputs]
        return [t for t, kind in zip(tensors, kinds, strict=False) if kind is InputKind.BUFFER] + tensors[len(kinds) :]

    def values(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Every named fx node in an eager run of the program, of its first particle; nothing is written."""
        program = self.graph.program
        assert program is not None
        output = next(node for node in program.module.graph.nodes if node.op == "output")
        copies = [tensor.detach().clone() for tensor in tensors[: len(self.inputs)]]
        with torch.no_grad():
            results = program.module(*copies)
        return {node.name: value for node, value in zip(output.args[0], results, strict=True)}

    def _build(self, tensors: list[Tensor], with_gradient: bool, backend: Backend) -> Compiled:
        if backend == "inductor":
            library.start()
        if with_gradient:
            differentiated = self.differentiated(tensors)
        with self._compiling():
            if not with_gradient:
                emitted = emit_surrogate(self.graph, *particles(self.options)[:2], loss_only=True)
                differentiated = without_gradient(self._lean(emitted.module), tensors)
            module = differentiated.module
            if differentiated.validates:
                module = undone_if_invalid(module, tensors)
            built = build(module, tensors, backend, self.options.rng)
            if backend == "inductor":
                self.watch_natively()
        runner = Repeated(built.run, self.repeats, self.written if differentiated.validates else None)
        run = runner if self.repeats > 1 else built.run
        wanted = differentiated.gradient_of
        owned = wanted if set(self.brought).isdisjoint(wanted) else tuple(i for i in wanted if i not in self.brought)
        return Compiled(run, wanted, module, built.report, owned=owned)

    def _lean(self, module: fx.GraphModule) -> fx.GraphModule:
        """The emitted module as it is differentiated: as it is on the eager backend, which adds up as Pyro does, and
        where it switches autocast, for then it matters where a node is.
        """
        if self.options.backend == "eager" or switches_autocast(module.graph):
            return module
        module = copy_of(module)
        gather_last(module)
        take_whitened(module)
        return module

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Compilers draw random numbers and leave sources behind, and run the program's own functions."""
        with capturing():
            state, known = random_state(), known_sources()
            try:
                with rarely_collected(), taken_from(own_functions(self.emitted.module)):
                    yield
            finally:
                restore_random_state(state)
                forget_with(self, known)
