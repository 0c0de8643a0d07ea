"""A capture that leaves nothing behind, of a program that does the same in each run; and the guards for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgc.config import Options
from sgc.emit.backends.registry import backend_of
from sgc.errors import SideEffectWarning
from sgc.graph.plan import Plan
from sgc.guards.base import Call, Guard
from sgc.guards.environment.environment_guard import EnvironmentGuard
from sgc.guards.handlers import HandlerGuard
from sgc.guards.memory_guard import MemoryGuard
from sgc.guards.modes import ModeGuard
from sgc.guards.registration_guard import RegistrationGuard
from sgc.guards.sizes_guard import SizesGuard
from sgc.guards.structure import StructureGuard
from sgc.guards.tensor_guard import TensorGuard
from sgc.guards.value_guard import ValuesGuard
from sgc.runtime.residue.kept_results import refuse_kept_results
from sgc.runtime.residue.leaked_tensors import LeakedTensors, roots
from sgc.runtime.specializing.moving_capture import MovingCapture
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.declare import Capture
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import PrototypeRun, refuse_changing
from sgc.tracing.source import warn
from sgc.tracing.state.owners import StoreOwner


@dataclass(frozen=True)
class CheckedCapture:
    """A capture, the guard of what is around it, and which tensors and numbers are its inputs."""

    capture: Capture
    surroundings: EnvironmentGuard
    moving: MovingCapture


def capture_checked(
    program: ProgramCall, call: Call, run: PrototypeRun, plan: Plan, earlier: Sequence[Specialization]
) -> CheckedCapture:
    """Capture the program, take away what it has left in its objects, and look whether its runs differ.

    :param plan: what was decided for its sites.
    :param earlier: other specializations of the program.
    :raises sgc.errors.CaptureError: if it cannot be captured, keeps a traced tensor, or does not do the same each time.
    """
    moving = MovingCapture(program, call, run, plan, earlier)
    named = zip(moving.names, call.leaves, strict=True)
    leaks = LeakedTensors(roots(program.model, program.guide, named, run.modules))
    moving.put_back = leaks.put_back
    try:
        captured, transcript = moving.capture()
    finally:
        left = leaks.put_back()
    leaks.refuse_lasting(left)
    refuse_kept_results(captured, call, run.began, leaks)
    leaks.warn(left)
    surroundings = moving.surroundings
    surroundings.refuse_used_up()
    changed = surroundings.miss(call)
    ran_again = refuse_changing(transcript, run, program, keeps_state=changed is not None or bool(left))
    if changed is not None:
        warn(
            f"the program changes what is around it each time it runs, which a compiled program does not: {changed}. "
            "Keep such state in a buffer, or pass it as an argument.",
            SideEffectWarning,
        )
    if ran_again or changed is not None:
        surroundings = moving.guard_of_surroundings()
    return CheckedCapture(captured, surroundings, moving)


def guards_of(
    checked: CheckedCapture, call: Call, run: PrototypeRun, options: Options
) -> tuple[TensorGuard, tuple[Guard, ...]]:
    """All guards in the order in which they are asked, and the one among them that finds the inputs.

    :raises sgc.errors.CaptureError: where inputs share memory in a way that the backend does not see.
    """
    captured, surroundings, moving = checked.capture, checked.surroundings, checked.moving
    program = captured.program
    tensors = TensorGuard(program.inputs, captured.owners, call, moving.others(captured.owners), moving.sizes)
    memory = MemoryGuard(program, tensors, call)
    memory.refuse_shared(call, run.written.line_of, sees_views=backend_of(options.backend).sees_views)
    modules = [*run.modules, *surroundings.modules]
    registered = [StoreOwner(name, run.store) for name in run.params if run.store.get(name) is not None]
    return tensors, (
        moving.guard_of_arguments(),
        RegistrationGuard(run.store, run.params, modules, captured.owners.values(), surroundings.tensors),
        StructureGuard(modules, [*registered, *captured.owners.values()]),
        ModeGuard(run.modules, follows_validation=options.validate is None),
        tensors,
        *([SizesGuard(captured.sizes, moving.versions_of_sizes(captured.sizes))] if captured.sizes is not None else []),
        memory,
        HandlerGuard(),
        surroundings,
        ValuesGuard(program.value_guards, program.inputs, tensors),
    )
