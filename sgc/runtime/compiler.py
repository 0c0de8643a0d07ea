"""Makes a specialization: the one place that sees every stage, from the captured run to the guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sgc.capture.arguments import argument_names
from sgc.capture.declare import Capture
from sgc.capture.driver import capture_program
from sgc.capture.prototype import Rehearsal, refuse_changing
from sgc.capture.python.partials import CallRecord
from sgc.capture.source import warn
from sgc.config import Options
from sgc.emit.emitter import emit_surrogate
from sgc.errors import SideEffectWarning
from sgc.graph.build import build_graph
from sgc.guards.base import ArgumentGuard, Call, EnvironmentGuard, Guard, TensorGuard, ValuesGuard
from sgc.guards.handlers import HandlerGuard
from sgc.guards.modes import ModeGuard
from sgc.guards.structure import StructureGuard
from sgc.passes.pipeline import run_passes
from sgc.runtime.generated_sources import forget_with, known_sources
from sgc.runtime.particles import particles
from sgc.runtime.residue.leftovers import Leftovers, roots
from sgc.runtime.specialization import Specialization


def specialize(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    options: Options,
    rehearsal: Rehearsal,
    earlier: Sequence[Specialization] = (),
) -> Specialization:
    """Compile model and guide for calls like this one, which none of the ``earlier`` specializations fits."""
    known = known_sources()
    names = argument_names(call.args, call.kwargs)
    surroundings = EnvironmentGuard(model, guide, call, rehearsal.reads)
    leftovers = Leftovers(roots(model, guide, zip(names, call.leaves, strict=True), rehearsal.modules))
    try:
        captured, records = _capture(model, guide, call, options, rehearsal, _records(call, names, earlier))
    finally:
        left = leftovers.put_back()
    leftovers.refuse_lasting(left)
    leftovers.warn(left)
    surroundings.refuse_used_up()
    changed = surroundings.miss(call)
    traced = model, guide, call.args, call.kwargs, options
    keeps_state = changed is not None or bool(left)
    ran_again = refuse_changing(captured.transcript, rehearsal, *traced, keeps_state=keeps_state)
    if changed is not None:
        warn(
            f"the program changes what is around it each time it runs, which a compiled program does not: {changed}. "
            "Keep such state in a buffer, or pass it as an argument.",
            SideEffectWarning,
        )
    if ran_again or changed is not None:
        surroundings = EnvironmentGuard(model, guide, call, rehearsal.reads)
    program = captured.program
    graph = run_passes(build_graph(program))
    if rehearsal.failure is not None:
        raise rehearsal.failure
    emitted = emit_surrogate(graph, *particles(options)[:2])
    tensors = TensorGuard(program.inputs, captured.owners)
    guards: tuple[Guard, ...] = (
        ArgumentGuard(call, names, records),
        StructureGuard([*rehearsal.modules, *surroundings.modules], captured.owners.values()),
        ModeGuard(rehearsal.modules, follows_validation=options.validate is None),
        tensors,
        HandlerGuard(),
        surroundings,
        ValuesGuard(program.value_guards, program.inputs),
    )
    made = Specialization(
        graph,
        emitted,
        program.inputs,
        captured.owners,
        options,
        tensors,
        guards,
        rehearsal.max_plate_nesting,
        rehearsal.params,
        program.checks,
        rehearsal.store,
    )
    forget_with(made, known)
    return made


def _records(call: Call, names: list[str], earlier: Sequence[Specialization]) -> dict[int, CallRecord]:
    """A record for each partial that has changed from call to call."""
    guards = [guard for made in earlier for guard in made.guards if isinstance(guard, ArgumentGuard)]
    return {position: CallRecord(names[position]) for guard in guards for position in guard.varying(call)}


def _capture(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    options: Options,
    rehearsal: Rehearsal,
    records: dict[int, CallRecord],
) -> tuple[Capture, dict[int, CallRecord]]:
    if records:
        try:
            return capture_program(model, guide, call.args, call.kwargs, options, rehearsal, records), records
        except Exception:  # The program looked into a partial, or has a fault that shows again below.
            records = {}
    return capture_program(model, guide, call.args, call.kwargs, options, rehearsal), records
