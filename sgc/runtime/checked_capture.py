"""A capture that leaves nothing behind, of a program that does the same in each run; and the guards for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgc.capture.arguments import argument_names
from sgc.capture.declare import Capture
from sgc.capture.driver import capture_program
from sgc.capture.program_call import ProgramCall
from sgc.capture.prototype import PrototypeRun, refuse_changing
from sgc.capture.python.partials import CallRecord
from sgc.capture.source import warn
from sgc.capture.state.transcript import Transcript
from sgc.config import Options
from sgc.errors import SideEffectWarning
from sgc.graph.plan import Plan
from sgc.guards.base import ArgumentGuard, Call, EnvironmentGuard, Guard, TensorGuard, ValuesGuard
from sgc.guards.handlers import HandlerGuard
from sgc.guards.modes import ModeGuard
from sgc.guards.structure import StructureGuard
from sgc.runtime.residue.leftovers import Leftovers, roots
from sgc.runtime.specialization import Specialization


@dataclass(frozen=True)
class CheckedCapture:
    """A capture, the guard of what is around it, and the calls that it has recorded of partials among its arguments."""

    capture: Capture
    surroundings: EnvironmentGuard
    records: dict[int, CallRecord]


def capture_checked(
    program: ProgramCall, call: Call, run: PrototypeRun, plan: Plan, earlier: Sequence[Specialization]
) -> CheckedCapture:
    """Capture the program, take away what it has left in its objects, and look whether its runs differ.

    :param plan: what was decided for its sites.
    :param earlier: other specializations of the program.
    :raises sgc.errors.CaptureError: if it cannot be captured, keeps a traced tensor, or does not do the same each time.
    """
    names = argument_names(call.args, call.kwargs)
    surroundings = EnvironmentGuard(program.model, program.guide, call, run.reads)
    named = zip(names, call.leaves, strict=True)
    leftovers = Leftovers(roots(program.model, program.guide, named, run.modules))
    try:
        (captured, transcript), records = _capture(program, run, plan, _records(call, names, earlier))
    finally:
        left = leftovers.put_back()
    leftovers.refuse_lasting(left)
    leftovers.warn(left)
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
        surroundings = EnvironmentGuard(program.model, program.guide, call, run.reads)
    return CheckedCapture(captured, surroundings, records)


def guards_of(
    checked: CheckedCapture, call: Call, run: PrototypeRun, options: Options
) -> tuple[TensorGuard, tuple[Guard, ...]]:
    """All guards in the order in which they are asked, and the one among them that finds the inputs."""
    captured, surroundings = checked.capture, checked.surroundings
    program = captured.program
    tensors = TensorGuard(program.inputs, captured.owners)
    return tensors, (
        ArgumentGuard(call, argument_names(call.args, call.kwargs), checked.records),
        StructureGuard([*run.modules, *surroundings.modules], captured.owners.values()),
        ModeGuard(run.modules, follows_validation=options.validate is None),
        tensors,
        HandlerGuard(),
        surroundings,
        ValuesGuard(program.value_guards, program.inputs, tensors),
    )


def _records(call: Call, names: list[str], earlier: Sequence[Specialization]) -> dict[int, CallRecord]:
    """A record for each partial that has changed from call to call."""
    guards = [guard for known in earlier for guard in known.guards if isinstance(guard, ArgumentGuard)]
    return {position: CallRecord(names[position]) for guard in guards for position in guard.varying(call)}


def _capture(
    program: ProgramCall, run: PrototypeRun, plan: Plan, records: dict[int, CallRecord]
) -> tuple[tuple[Capture, Transcript], dict[int, CallRecord]]:
    if records:
        try:
            return capture_program(program, run, plan, records), records
        except Exception:  # The program looked into a partial, or has a fault that shows again below.
            records = {}
    return capture_program(program, run, plan), records
