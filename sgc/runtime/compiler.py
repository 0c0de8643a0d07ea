"""The whole way from a call of a program to what runs: each stage takes what the one before it gave.

    prototype run     eager Pyro, once                               Prototype
    capture           Pyro's handlers under torch's tracer           Capture
    graph, passes     the statistical decisions, as nodes            StochasticGraph
    emission          the arithmetic of these nodes                  Emitted
    differentiation   the gradient of the surrogate, traced          Differentiated
    rewrites          fx to fx, as the backend wants it              Optimized
    backend           a callable                                     Compiled

The first four are made at the first call. The others are made when a gradient, a loss without one, or a whole step is
first asked for. A :class:`~sgc.runtime.specialization.Specialization` keeps what they gave, and
``loss_module.stages()`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, fx

from sgc.emit.backends.protocol import Backend, StepBackend
from sgc.emit.backends.registry import backend_of
from sgc.emit.differentiate import Differentiated, differentiate, without_gradient
from sgc.emit.emitter import emit_surrogate
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
from sgc.runtime.checked_capture import capture_checked, guards_of
from sgc.runtime.generated_sources import forget_with, known_sources
from sgc.runtime.particles import Repeated
from sgc.runtime.program_text import Rewritten
from sgc.runtime.residue.leaked_tensors import without_leaks_into
from sgc.runtime.specialization import SizesNeededError, Specialization
from sgc.runtime.turns import capturing
from sgc.tracing.leaves.autograd_functions import own_functions
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import PrototypeRun
from sgc.tracing.python.garbage import rarely_collected
from sgc.tracing.state.random_state import random_state, restore_random_state


def specialize(
    program: ProgramCall, call: Call, run: PrototypeRun, earlier: Sequence[Specialization] = ()
) -> Specialization:
    """The stages up to emission, and the guards, for calls like this one; none of the ``earlier`` ones fits it."""
    known, options = known_sources(), program.options
    plan = make_plan(run.requests, options)
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
        with _compiling(specialization), _any_size(specialization):
            wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            module = _before_gradient(specialization, specialization.emitted.module)
            specialization.differentiated = differentiate(module, specialization.examples(tensors), wanted)
    return specialization.differentiated


def _before_gradient(specialization: Specialization, module: fx.GraphModule) -> fx.GraphModule:
    """The module as it is to be differentiated; these rewrites ask for sizes."""
    return module if specialization.capture.sizes is not None else specialization.backend.before_gradient(module)


def compile_loss(
    specialization: Specialization, tensors: list[Tensor], *, with_gradient: bool, backend: Backend
) -> Compiled:
    """What computes loss and gradients, or the loss alone, on a backend; made once."""
    key = with_gradient, backend
    if key not in specialization.compiled:
        specialization.compiled[key] = _compile(specialization, tensors, with_gradient, backend)
    return specialization.compiled[key]


def _compile(specialization: Specialization, tensors: list[Tensor], with_gradient: bool, backend: Backend) -> Compiled:
    options = specialization.options
    if backend.needs_compiler:
        library.start()
    if with_gradient:
        differentiated = differentiate_loss(specialization, tensors)
    with _compiling(specialization), _any_size(specialization):
        if not with_gradient:
            emitted = emit_surrogate(specialization.graph, loss_only=True)
            module = _before_gradient(specialization, emitted.module)
            differentiated = without_gradient(module, specialization.examples(tensors))
        module = differentiated.module
        if differentiated.validates:
            module = rolled_back_if_invalid(module)
        examples = [tensor.detach() for tensor in tensors]
        optimized = backend.after_gradient(module, examples, options.rng)
        run = backend.build(optimized, examples, options.rng)
        if backend.needs_compiler:
            specialization.watch_natively()
    if specialization.repeats > 1:
        run = Repeated(run, specialization.repeats, specialization.written if differentiated.validates else None)
    wanted, brought = differentiated.gradient_of, specialization.brought
    owned = wanted if set(brought).isdisjoint(wanted) else tuple(i for i in wanted if i not in brought)
    return Compiled(run, wanted, Rewritten.of(optimized, module), owned=owned)


def build_step(
    specialization: Specialization, backend: StepBackend, tensors: list[Tensor], state: list[Tensor], update: Update
) -> BuiltStep:
    """The whole step, of ``(*tensors, *state, halted)``, not compiled yet; see :mod:`sgc.emit.train_step`."""
    library.start()
    differentiated = differentiate_loss(specialization, tensors)
    with _compiling(specialization):
        examples, rng = [*tensors, *state, new_flag(differentiated.device)], specialization.options.rng
        if specialization.repeats > 1:
            loop = emit_particle_loop(differentiated, tensors, state, update, specialization.repeats)
            built = backend.build_particle_loop(loop, examples, rng)
        else:
            module = emit_step(differentiated, state, update)
            updated = {*differentiated.gradient_of, *range(len(tensors), len(tensors) + len(state))}
            with _any_size(specialization):
                built = backend.build_step(module, examples, rng, updated)
    specialization.steps.append((backend, built.report))
    return built


def compile_step(specialization: Specialization, built: BuiltStep) -> None:
    """Compile a whole step."""
    with _compiling(specialization), _any_size(specialization):
        built.compile()
        specialization.watch_natively()


@contextmanager
def _compiling(specialization: Specialization) -> Iterator[None]:
    """Compilers draw random numbers and leave sources behind, and run the program's own functions."""
    with capturing():
        state, known = random_state(), known_sources()
        try:
            with rarely_collected(), without_leaks_into(own_functions(specialization.emitted.module)):
                yield
        finally:
            restore_random_state(state)
            forget_with(specialization, known)


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
