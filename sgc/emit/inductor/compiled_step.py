"""A whole training step, compiled by Inductor, that is taken once or many times in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.fx.lift_tensors import lift_tensors
from sgc.emit.fx.rewriting import results_of, value_of
from sgc.emit.inductor.background.compile_request import Answer, CompileRequest, GraphRequest
from sgc.emit.inductor.background.precompiled import Precompiled
from sgc.emit.inductor.background.uncompiled_graphs import operator_by_operator
from sgc.emit.inductor.compile_graph import Runner, compile_graph
from sgc.emit.inductor.cpp_entry import NativeCall, NativeProgram, library_of, native_program
from sgc.emit.inductor.cuda_graphs import ReplayedStep, replayed_on
from sgc.emit.particle_loop import ParticleLoop
from sgc.emit.rewrites.optimize import Report, optimize
from sgc.emit.rewrites.outline import Outlined
from sgc.emit.rollback import written_inputs
from sgc.graph.aliasing import shares_storage
from sgc.native.switches import is_on


class Compiling(Protocol):
    """The compilation of a step that runs uncompiled."""

    def is_done(self) -> bool:
        """Whether the step can be compiled now, or loaded."""
        ...


@dataclass(frozen=True)
class _Compiled:
    """A compiled module: called with all inputs, and the attributes behind them; from C++, if that can be."""

    run: Runner
    native: NativeProgram | None
    attributes: list[Tensor]


@dataclass
class BuiltStep:
    """A step as it was rewritten, and what it was compiled to.

    On the CPU the compiled program is called from C++ (:mod:`sgc.emit.inductor.cpp_entry`), which spares each step the
    way through Python, and the update of most parameters is taken out of it (:mod:`sgc.emit.rewrites.outline`). On a
    GPU it is replayed as a CUDA graph (:mod:`sgc.emit.inductor.cuda_graphs`). Precompiled, and where what is written
    shares memory, each step is a call of its own.

    :param outlined: ``module`` in two parts.
    :param loop: what is run before ``module``, and how often, where there are many particles; on a GPU each step is a
        call of its own then.
    :param uncompiled: what computes the same operator by operator, until it is compiled.
    :param run: the compiled program, or ``uncompiled`` before it is compiled.
    :param native: the same, to be called from C++.
    """

    module: fx.GraphModule
    report: Report
    examples: list[Tensor]
    rng: Rng
    outlined: Outlined | None = None
    loop: ParticleLoop | None = None
    gpu: torch.device | None = None
    """The GPU on which it is replayed, if it is."""
    detour: bool = False
    """Whether each step goes through Python because the compiled program was not recognised."""
    compile_graph: Callable[..., Runner] = compile_graph
    library_of: Callable[[Sequence[str]], Callable[[], Any]] | None = None
    """What gives the library of the outlined functions, in place of compiling it."""
    uncompiled: Runner | None = None
    awaited: Compiling | None = None
    """What another process compiles of it."""
    run: Runner | None = None
    native: NativeProgram | None = None
    _attributes: list[Tensor] = field(default_factory=list)

    @property
    def compiled(self) -> bool:
        """Whether it is compiled."""
        return self.run is not None and self.run is not self.uncompiled

    def compile(self) -> None:
        """Compile it.

        :raises sgc.errors.BackendError: if Inductor cannot work on this machine; it can be asked for again.
        """
        examples, native = self.examples, self._may_be_native
        particle = None if self.loop is None else self._compile(self.loop.particle, examples, [], native=native)
        attributes = [] if particle is None else particle.attributes
        whole = None
        if self.outlined is not None and native:
            whole = self._compile(self.outlined.rest, examples, attributes, particle, self.outlined, native=True)
        if whole is None or whole.native is None:
            if self.outlined is not None:
                self.module = optimize(self.module, examples, rng=self.rng).module
                self.outlined = None
            whole = self._compile(self.module, examples, attributes, particle, native=native)
        # From here on it counts as compiled: nothing may fail behind.
        self.native, self._attributes = whole.native, whole.attributes
        self.run = whole.run if particle is None else self.run_particles(particle.run, whole.run)
        self.uncompiled = None
        self.detour = native and self.native is None
        self.examples = []  # they hold the memory of what may be long gone

    def take_over(self, answer: Answer) -> None:
        """Load what another process has compiled, in place of compiling it; what it could not, is compiled.

        :raises OSError, ImportError: if it cannot be loaded.
        """
        before, precompiled = (self.compile_graph, self.library_of), Precompiled(answer)
        self.compile_graph, self.library_of = precompiled.compile_graph, precompiled.library_of
        try:
            self.compile()
        finally:
            self.compile_graph, self.library_of = before

    @cached_property
    def _may_be_native(self) -> bool:
        on_cpu = all(tensor.device.type == "cpu" for tensor in self.examples)
        return on_cpu and not shares_storage(self.examples, self.written) and is_on("cpp_entry")

    def request(self) -> CompileRequest | None:
        """What another process would have to compile; None where programs are not called from C++."""
        if not self._may_be_native:
            return None
        graphs, attributes = [], list[Tensor]()
        outlined = self.outlined
        modules = [] if self.loop is None else [self.loop.particle]
        for module in (*modules, self.module if outlined is None else outlined.rest):
            lifted, takes, own = lift_tensors(module)
            everything = [*self.examples, *attributes, *own]
            places = [i if i < len(self.examples) else i + len(attributes) for i in takes]
            results = len(results_of(module))
            graphs.append(GraphRequest(lifted, [everything[i] for i in places], self.rng, True, results))
            attributes += own
        return CompileRequest(tuple(graphs), () if outlined is None else outlined.functions)

    def run_uncompiled(self, plain: fx.GraphModule, particle: fx.GraphModule | None = None) -> None:
        """Let it run operator by operator until it is compiled.

        :param plain: the module, or the rest of the outlined one, as it runs fastest so.
        :param particle: that of the loop, likewise.
        """
        finish, outlined = operator_by_operator(plain), self.outlined
        if outlined is not None and outlined.update is not None:
            update, own = operator_by_operator(outlined.update), len(results_of(self.module))

            def both(*inputs: Tensor) -> Sequence[Tensor]:
                results = rest(*inputs)
                if not inputs[-1].item():  # it has not halted
                    update(*inputs, *results)
                return results[:own]

            rest, finish = finish, both
        self.run = finish if particle is None else self.run_particles(operator_by_operator(particle), finish)
        self.uncompiled = self.run

    def _compile(
        self,
        module: fx.GraphModule,
        examples: list[Tensor],
        others: list[Tensor],
        particle: _Compiled | None = None,
        outlined: Outlined | None = None,
        *,
        native: bool,
    ) -> _Compiled:
        """Compile a module, whose attributes become inputs behind the ``others``."""
        lifted, takes, own = lift_tensors(module)
        takes = [i if i < len(examples) else i + len(others) for i in takes]
        attributes = [*others, *own]
        everything = [*examples, *attributes]
        functions = None if outlined is None else (self.library_of or library_of)(outlined.functions)
        run = self.compile_graph(lifted, [everything[i] for i in takes], self.rng, in_one_piece=native)
        program = None
        if native and (particle is None or particle.native is not None):
            wanted = results_of(module if outlined is None else self.module)
            kernels = outlined.kernels if outlined is not None else ()
            loop = self._native_loop(particle)
            dtypes = [value_of(node).dtype for node in wanted]
            program = native_program(run, takes, dtypes, len(results_of(module)), kernels, functions, loop)
        return _Compiled(lambda *inputs: run(*(inputs[i] for i in takes)), program, attributes)

    def _native_loop(self, particle: _Compiled | None) -> tuple[NativeProgram, int, int, int] | None:
        if particle is None or particle.native is None or self.loop is None:
            return None
        return particle.native, self.loop.times, *self._flags

    @property
    def _flags(self) -> tuple[int, int]:
        """The positions of the inputs ``first`` and ``aborted``."""
        assert self.loop is not None
        behind = len(self.module.graph.find_nodes(op="placeholder")) - len(self.loop.scratch)
        return behind, behind + 1

    def run_particles(self, particle: Runner, finish: Runner) -> Runner:
        """What C++ does with a loop, in Python: runs both compiled modules of a step."""
        assert self.loop is not None
        times, places = self.loop.times, self._flags

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            first, aborted = (inputs[place] for place in places)
            aborted.fill_(False)
            for number in range(times):
                first.fill_(number == 0)
                try:
                    particle(*inputs)
                except BaseException:
                    if number:
                        finish(*inputs[: places[1]], aborted.fill_(True), *inputs[places[1] + 1 :])
                    raise
            return finish(*inputs)

        return run

    @cached_property
    def written(self) -> list[int]:
        """The positions of the inputs that it writes."""
        particle = set() if self.loop is None else written_inputs(self.loop.particle)
        return sorted(written_inputs(self.module) | particle)

    def bind(self, inputs: Sequence[Tensor | None]) -> BoundStep:
        """The compiled step for these inputs; None stands for one that each call brings."""
        assert self.run is not None
        scratch = [] if self.loop is None else self.loop.scratch
        everything = [*inputs, *scratch, *self._attributes]
        call: NativeCall | ReplayedStep | None = None
        if self.native is not None:
            call = self.native.bind(everything, self.written)
        elif self.gpu is not None and all(everything[i] is not None for i in self.written):
            call = ReplayedStep(self.run, everything, self.written, self.gpu)
        return BoundStep(self.run, everything, call, value_of(results_of(self.module)[0]).dtype)


class BoundStep:
    """A compiled step with its inputs, but for those that each call brings.

    The tensors that it is given are its first inputs. ``dtype`` is that of the loss.
    """

    def __init__(
        self, run: Runner, inputs: list[Tensor | None], call: NativeCall | ReplayedStep | None, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self._run = run
        self._inputs = inputs
        self._call = call
        self.once: Callable[[list[Tensor]], Sequence[Any]] = self._once if call is None else call.once
        """Take one step; what it returns, as numbers, the loss first."""

    def __call__(self, tensors: list[Tensor], steps: int) -> list[Tensor]:
        """Take at least one step and at most ``steps``.

        :return: what they return, losses first, each result a tensor of shape ``[taken]``.
        """
        if self._call is not None:
            return self._call(tensors, steps)
        return [result.reshape(1).clone() for result in self._run(*self.inputs(tensors))]  # not the piece it lies in

    def until_halted(
        self, tensors: list[Tensor], steps: int, note_state: Callable[[], Tensor]
    ) -> tuple[list[Tensor], Tensor] | None:
        """Steps up to one that halts (see ``NativeCall.until_halted``); None if each is a call."""
        if self.native is None or self.dtype not in (torch.float32, torch.float64):
            return None
        return self.native.until_halted(tensors, steps, note_state)

    @property
    def native(self) -> NativeCall | None:
        """The call that C++ makes of it; None if Python does."""
        return self._call if isinstance(self._call, NativeCall) else None

    def _once(self, tensors: list[Tensor]) -> Sequence[Any]:
        return [result.item() for result in self(tensors, 1)]

    def inputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All inputs, with those that a call brings."""
        everything = [*tensors, *self._inputs[len(tensors) :]]
        assert all(tensor is not None for tensor in everything)
        return cast(list[Tensor], everything)


def build_step(
    module: fx.GraphModule,
    tensors: Sequence[Tensor],
    rng: Rng,
    updated: Collection[int] = (),
    compile_graph: Callable[..., Runner] = compile_graph,
    *,
    runs_at_once: bool = False,
) -> BuiltStep:
    """Rewrite the module of a step (:func:`sgc.emit.train_step.emit_step`); it is compiled when that is asked for.

    :param updated: the positions of the inputs that the optimizer writes.
    :param runs_at_once: whether it is to run operator by operator until then.
    """
    examples = [tensor.detach() for tensor in tensors]
    on_cpu = all(tensor.device.type == "cpu" for tensor in examples)
    optimized = optimize(module, examples, rng=rng, updated=updated if on_cpu else (), keep_plain=runs_at_once)
    gpu, report = replayed_on(optimized.module, examples, optimized.report)
    built = BuiltStep(optimized.module, report, examples, rng, optimized.outlined, gpu=gpu, compile_graph=compile_graph)
    if optimized.plain is not None:
        built.run_uncompiled(optimized.plain)
    return built


def build_particle_loop(
    loop: ParticleLoop,
    tensors: Sequence[Tensor],
    rng: Rng,
    compile_graph: Callable[..., Runner] = compile_graph,
    *,
    runs_at_once: bool = False,
) -> BuiltStep:
    """Rewrite the modules of a step of many particles; they are compiled when that is asked for.

    :param tensors: examples of the step's inputs, but for the scratch.
    :param runs_at_once: see :func:`build_step`.
    """
    examples = [tensor.detach() for tensor in (*tensors, *loop.scratch)]
    particle, finish = (
        optimize(module, examples, rng=rng, keep_plain=runs_at_once) for module in (loop.particle, loop.finish)
    )
    loop = replace(loop, particle=particle.module)
    built = BuiltStep(finish.module, particle.report, examples, rng, loop=loop, compile_graph=compile_graph)
    if finish.plain is not None:
        built.run_uncompiled(finish.plain, particle.plain)
    return built
