"""The whole way from a call of a program to what runs: each stage takes what the one before it gave.

    prototype run     eager Pyro, once                               Prototype
    capture           Pyro's handlers under torch's tracer           Capture
    graph, passes     the statistical decisions, as nodes            StochasticGraph
    emission          the arithmetic of these nodes                  Emitted
    differentiation   the gradient of the surrogate, traced          Differentiated
    rewrites          fx to fx, as the backend wants it              Optimized
    backend           a callable                                     Compiled

The first four are made at the first call. The others are made when a gradient, a loss without one, or a whole step is
first asked for. A :class:`~sgc.runtime.specializing.specialization.Specialization` keeps what they gave, and
``loss_module.stages()`` prints it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, fx

from sgc.emit.backends.protocol import Backend, StepBackend
from sgc.emit.backends.registry import backend_of
from sgc.emit.differentiate import Differentiated, differentiate, without_gradient
from sgc.emit.emitter import emit_surrogate
from sgc.emit.inductor.background.compiler_process import PendingCompilation
from sgc.emit.inductor.background.uncompiled_graphs import operator_by_operator
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.particle_loop import emit_particle_loop
from sgc.emit.rollback import rolled_back_if_invalid
from sgc.emit.train_step import Update, emit_step, new_flag
from sgc.errors import SgcError
from sgc.graph.build import build_graph
from sgc.guards.base import Call
from sgc.native import library
from sgc.passes.pipeline import run_passes
from sgc.passes.site_plan import make_plan
from sgc.runtime.autograd import Compiled
from sgc.runtime.background.change_over import ChangeOver, built_here, repeated
from sgc.runtime.background.compiled_elsewhere import background_backend, begun, taken, told, usable
from sgc.runtime.background.postponed import Postponed
from sgc.runtime.compiling import compiling
from sgc.runtime.generated_sources import forget_with, known_sources
from sgc.runtime.inspection.program_text import Rewritten
from sgc.runtime.specializing.checked_capture import capture_checked, guards_of
from sgc.runtime.specializing.specialization import SizesNeededError, Specialization
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import PrototypeRun


def specialize(
    program: ProgramCall, call: Call, run: PrototypeRun, earlier: Sequence[Specialization] = ()
) -> Specialization:
    """The stages up to emission, and the guards, for calls like this one; none of the ``earlier`` ones fits it."""
    known, options = known_sources(), program.options
    plan = make_plan(run.requests, options, first=not earlier)
    checked = capture_checked(program, call, run, plan, earlier)
    graph = run_passes(build_graph(checked.capture.program), plan)
    if run.failure is not None:
        raise run.failure
    emitted = emit_surrogate(graph)
    tensors, guards = guards_of(checked, call, run, options)
    backend = backend_of(options.backend)
    stages = run.prototype, checked.capture, graph, emitted
    fixed = checked.moving.by_value, checked.moving.needed_sizes
    specialization = Specialization(*stages, options, backend, tensors, guards, *fixed)
    forget_with(specialization, known)
    return specialization


def differentiate_loss(specialization: Specialization, tensors: list[Tensor]) -> Differentiated:
    """The module that computes loss and gradients; made once.

    :param tensors: those that the emitted module takes.
    """
    if specialization.differentiated is None:
        with compiling(specialization), _any_size(specialization):
            wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            module = _before_gradient(specialization, specialization.emitted.module)
            specialization.differentiated = differentiate(module, specialization.examples(tensors), wanted)
    return specialization.differentiated


def _before_gradient(specialization: Specialization, module: fx.GraphModule) -> fx.GraphModule:
    """The module as it is to be differentiated; these rewrites ask for sizes."""
    return module if specialization.capture.sizes is not None else specialization.backend.before_gradient(module)


def compile_loss(
    specialization: Specialization,
    tensors: list[Tensor],
    *,
    with_gradient: bool,
    backend: Backend,
    wait: bool = False,
) -> Compiled:
    """What computes loss and gradients, or the loss alone, on a backend; made once.

    Where another process compiles it, it runs operator by operator until that is done.

    :param wait: whether to wait for that.
    """
    key = with_gradient, backend
    compiled = specialization.compiled.get(key)
    if compiled is None:
        compiled = specialization.compiled[key] = _compile(specialization, tensors, with_gradient, backend)
    while wait and compiled.change is not None and not compiled.change.is_due():
        time.sleep(_PAUSE)
    if compiled.change is not None and compiled.change.is_due():
        with _any_size(specialization):
            compiled = specialization.compiled[key] = compiled.change.made(compiled, tensors)
    return compiled


def _compile(specialization: Specialization, tensors: list[Tensor], with_gradient: bool, backend: Backend) -> Compiled:
    options, what = specialization.options, _LOSS if with_gradient else _LOSS_ALONE
    background = background_backend(specialization, backend, tensors)
    if backend.needs_compiler and background is None:
        library.start()
    if with_gradient:
        differentiated = differentiate_loss(specialization, tensors)
    with compiling(specialization), _any_size(specialization):
        if not with_gradient:
            emitted = emit_surrogate(specialization.graph, loss_only=True)
            module = _before_gradient(specialization, emitted.module)
            differentiated = without_gradient(module, specialization.examples(tensors))
        module = differentiated.module
        if differentiated.validates:
            module = rolled_back_if_invalid(module)
        examples = [tensor.detach() for tensor in tensors]
        optimized = (background or backend).after_gradient(module, examples, options.rng)
        change = None
        if background is not None:
            asked = begun(specialization, what, partial(background.request, optimized, examples, options.rng))
            if asked is not None:
                change = ChangeOver(specialization, what, background, optimized, differentiated.validates, asked)
        if change is not None and not change.is_due():
            assert optimized.plain is not None
            run = _counted(operator_by_operator(optimized.plain), change.asked)
        elif change is not None:
            run, change = change.build(examples), None
        else:
            run = built_here(specialization, what, backend, optimized, examples)
    run = repeated(specialization, run, differentiated.validates)
    wanted, brought = differentiated.gradient_of, specialization.brought
    owned = wanted if set(brought).isdisjoint(wanted) else tuple(i for i in wanted if i not in brought)
    return Compiled(run, wanted, Rewritten.of(optimized, module), owned=owned, change=change)


_PAUSE = 0.01
"""Seconds between two looks whether another process is done."""

_LOSS, _LOSS_ALONE, _STEP = "the loss and its gradients", "the loss alone", "the training step"
"""What is compiled, as the log calls it."""


def build_step(
    specialization: Specialization, backend: StepBackend, tensors: list[Tensor], state: list[Tensor], update: Update
) -> BuiltStep:
    """The whole step, of ``(*tensors, *state, halted)``, not compiled yet; see :mod:`sgc.emit.train_step`."""
    background = background_backend(specialization, backend, [*tensors, *state])
    if background is None:
        library.start()
    differentiated = differentiate_loss(specialization, tensors)
    with compiling(specialization):
        examples, rng = [*tensors, *state, new_flag(differentiated.device)], specialization.options.rng
        if specialization.repeats > 1:
            loop = emit_particle_loop(differentiated, tensors, state, update, specialization.repeats)
            built = (background or backend).build_particle_loop(loop, examples, rng)
        else:
            module = emit_step(differentiated, state, update)
            updated = {*differentiated.gradient_of, *range(len(tensors), len(tensors) + len(state))}
            with _any_size(specialization):
                built = (background or backend).build_step(module, examples, rng, updated)
    specialization.steps.append((backend, built.report))
    return built


def compile_step(specialization: Specialization, built: BuiltStep) -> None:
    """Compile a whole step; or let another process do that, while it runs operator by operator."""
    if built.uncompiled is not None and built.awaited is None:
        built.awaited = begun(specialization, _STEP, built.request)
        built.run = built.uncompiled = _counted(built.uncompiled, built.awaited)
    awaited = built.awaited
    if awaited is not None and not awaited.is_done():
        return
    with compiling(specialization), _any_size(specialization):
        answer = taken(awaited)
        built.awaited = None
        if answer is not None:
            with usable(answer):
                built.take_over(answer)
        if not built.compiled:
            library.start()
            with told(specialization, _STEP):
                built.compile()
        specialization.watch_natively()


def _counted(run: Runner, asked: PendingCompilation | Postponed | None) -> Runner:
    """An uncompiled program, whose time counts where its compilation is put off."""
    return asked.timed(run) if isinstance(asked, Postponed) else run


@contextmanager
def _any_size(specialization: Specialization) -> Iterator[None]:
    """What fails here may fail because sizes are open.

    :raises SizesNeededError: then.
    """
    try:
        yield
    except SgcError:
        raise
    except Exception as error:
        if specialization.capture.sizes is None:
            raise
        raise SizesNeededError(specialization, f"compiled for any size it fails: {type(error).__name__}") from error
