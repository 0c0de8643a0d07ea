"""A capture with the tensors and numbers as inputs that are bound anew from call to call, and its guards of these."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgc.emit.backends.registry import backend_of
from sgc.errors import SourceLine
from sgc.graph.effects import AUTOCAST
from sgc.graph.plan import Plan
from sgc.graph.sizes import Size
from sgc.guards.argument_guard import ArgumentGuard
from sgc.guards.base import Call
from sgc.guards.environment.environment_guard import EnvironmentGuard
from sgc.guards.sizes_guard import Fits
from sgc.guards.tensor_guard import TensorGuard
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.arguments import argument_names
from sgc.tracing.declare import Capture
from sgc.tracing.driver import capture_program
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import PrototypeRun
from sgc.tracing.python.partials import CallRecord
from sgc.tracing.state.moving_inputs import MovingInputs
from sgc.tracing.state.owners import ArgumentOwner, Owner
from sgc.tracing.state.places import Place, PlaceOwner, is_number
from sgc.tracing.state.run_differences import difference
from sgc.tracing.state.transcript import Transcript
from sgc.tracing.symbolic_sizes import SMALLEST, Dims, Sized, SymbolicSizes, tensor_at


@dataclass
class MovingCapture:
    """Captures a program for a call.

    :param plan: what was decided for its sites.
    :param earlier: the specializations that do not fit the call.
    """

    program: ProgramCall
    call: Call
    run: PrototypeRun
    plan: Plan
    earlier: Sequence[Specialization]

    def __post_init__(self) -> None:
        self.put_back: Callable[[], object] = list  # takes away what a capture has left in the program's objects
        self.names = argument_names(self.call.args, self.call.kwargs)
        self.by_value = {place: why for known in self.earlier for place, why in known.by_value.items()}
        self._moving = frozenset(self._moved()) - self.by_value.keys()
        self.needed_sizes = {axis: why for known in self.earlier for axis, why in known.needed_sizes.items()}
        for sizes in [known.capture.sizes for known in self.earlier if known.capture.sizes is not None]:
            for where, dim in sizes.axes:
                if dim not in sizes.dims.get(where, ()):  # a backend has made a number of it
                    self.needed_sizes.setdefault((where, dim), "the compiled program needs the size itself")
        self.sizes = self._resized()
        programs = [known.graph.program for known in self.earlier]
        self._reads_again = any(program is not None and program.value_guards for program in programs)
        self._recorded: dict[int, CallRecord] = {}
        self._note()

    def _note(self) -> None:
        arguments = ArgumentGuard(self.call, self.names, self._moving, self.sizes)
        self.surroundings = self.guard_of_surroundings()
        values = {**arguments.free, **self.surroundings.free}
        self._traces = any(is_number(value) for value in values.values()) or self._reads_again
        self.moving = MovingInputs(values, tuple(self.surroundings.functions) if self._traces else (), self.sizes)

    def guard_of_surroundings(self) -> EnvironmentGuard:
        """What is around the program now."""
        modules = self.run.modules
        owned = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
        owned.update(id(tensor) for tensor in self.run.store.tensors().values())
        program = self.program
        return EnvironmentGuard(
            program.model, program.guide, self.call, self.run.reads, self._moving, owned, self.by_value
        )

    def guard_of_arguments(self) -> ArgumentGuard:
        """The arguments as they are now, after the capture.

        :raises ArgumentError: if one cannot be guarded.
        """
        guard = ArgumentGuard(self.call, self.names, self._moving, self.sizes, self.needed_sizes, self.by_value)
        guard.refuse_unguarded()
        guard.note_calls(self._recorded)
        return guard

    def capture(self) -> tuple[Capture, Transcript]:
        """The program, with as many sizes and numbers left open as can be traced; and the transcript of that run."""
        if self.sizes:
            sized = self._with_sizes()
            if sized is not None:
                return sized
        return self._with_numbers()

    def _with_sizes(self) -> tuple[Capture, Transcript] | None:
        """The program with sizes left open, as many as can be; None if none can, each then with the reason."""
        before = self.by_value, self._moving, self._reads_again
        try:
            captured, transcript = self._with_numbers()
        except Exception as error:  # where no capture can follow, or a fault that shows again without
            self.by_value, self._moving, self._reads_again = before
            self._close_sizes({}, _needed_at("size", getattr(error, "source", None)))
            return None
        assert captured.sizes is not None
        reason = why_not_resized(captured)
        differing = difference(transcript, self.run.transcript) if reason is None else None
        if differing is not None:
            reason = _runs_otherwise(differing.source)
        free = {} if reason else captured.sizes.dims
        if not free:
            self.by_value, self._moving, self._reads_again = before
        self._close_sizes(free, reason, captured.sizes)
        return (captured, transcript) if free else None

    def _with_numbers(self) -> tuple[Capture, Transcript]:
        for kinds in ((int,), (int, float)):
            if not self._traces:
                break
            made = self._tried({})
            if isinstance(made, tuple):
                differing = difference(made[1], self.run.transcript)
                if differing is None:
                    return made
                made = _runs_otherwise(differing.source)
            self._keep_by_value(kinds, made)
        records = self._records()
        if records:
            made = self._tried(records)
            if isinstance(made, tuple):
                self._recorded = records
                return made
        return self._capture({})

    def others(self, owners: dict[str, Owner]) -> dict[str, Owner]:
        """Where tensors are that may be bound anew, of which the program uses no more than their metadata."""
        used = {owner.place for owner in owners.values() if isinstance(owner, PlaceOwner)}
        tensors = {place for place, value in self.moving.values.items() if isinstance(value, Tensor)}
        return {place.label: PlaceOwner(place) for place in self.moving.values if place in tensors - used}

    def _keep_by_value(self, kinds: tuple[type, ...], reason: str) -> None:
        kept = {place for place in self.moving.numbers if isinstance(self.moving.values[place], kinds)}
        self.by_value = {**self.by_value, **dict.fromkeys(kept, reason)}
        self._moving -= kept
        self._reads_again = False
        self._note()

    def _close_sizes(self, free: Dims, reason: str | None, traced: SymbolicSizes | None = None) -> None:
        """Sizes but for those that are ``free`` are what they are in the call, now and in later captures."""
        for where, dims in self.sizes.items():
            for dim in dims - free.get(where, frozenset()):
                self.needed_sizes[where, dim] = reason or _needed_at(
                    "size", traced.line_of(where, dim) if traced else None
                )
        self.sizes = free
        self._note()

    def versions_of_sizes(self, sizes: SymbolicSizes) -> dict[tuple[int, ...], Fits]:
        """The earlier specializations that are for one combination of sizes, as long as they are kept."""
        versions: dict[tuple[int, ...], Fits] = {}
        for known in self.earlier:
            shapes = {owner_key(known.owners[declared.name]): declared.shape for declared in known.inputs}
            if known.capture.sizes is None and all(where in shapes for where, _ in sizes.axes):
                versions[tuple(shapes[where][dim] for where, dim in sizes.axes)] = _fits(weakref.ref(known))
        return versions

    def _resized(self) -> Dims:
        """The dims of tensors among the arguments and in places that were of other sizes before."""
        resized: dict[Sized, frozenset[int]] = {}
        if not backend_of(self.program.options.backend).takes_any_size:
            return resized
        for guard in (guard for known in self.earlier for guard in known.guards):
            if isinstance(guard, (ArgumentGuard, TensorGuard)):
                for where, dims in guard.resized(self.call).items():
                    shape = tensor_at(where, self.call.leaves).shape
                    resized[where] = resized.get(where, frozenset()) | {
                        dim for dim in dims if shape[dim] >= SMALLEST and (where, dim) not in self.needed_sizes
                    }
        return {where: dims for where, dims in resized.items() if dims and self._is_open(where)}

    def _is_open(self, where: Sized) -> bool:
        """Whether a tensor there is an input."""
        return isinstance(where, int) or where in self._moving

    def _moved(self) -> Iterator[Place]:
        """The places of tensors and numbers that were others before."""
        for guard in (guard for known in self.earlier for guard in known.guards):
            if isinstance(guard, ArgumentGuard):
                yield from guard.moved(self.call)
            elif isinstance(guard, EnvironmentGuard):
                yield from guard.moved()

    def _records(self) -> dict[int, CallRecord]:
        """A record for each partial that has changed from call to call, and has no parts that are inputs."""
        taken = {place.key for place in self.moving.values if place.is_argument}
        guards = [guard for known in self.earlier for guard in known.guards if isinstance(guard, ArgumentGuard)]
        positions = {position for guard in guards for position in guard.varying(self.call)} - taken
        return {position: CallRecord(self.names[position]) for position in sorted(positions)}

    def _tried(self, records: dict[int, CallRecord]) -> tuple[Capture, Transcript] | str:
        """A capture in which numbers and partials are stood in for; why not, if the program cannot be run with these.

        It may raise anything where it looks into one that Python cannot imitate. That is no fault of the program, which
        is captured again with the values themselves; a fault of its own raises there.
        """
        try:
            return self._capture(records)
        except Exception as error:
            return _needed_at("number", getattr(error, "source", None))

    def _capture(self, records: dict[int, CallRecord]) -> tuple[Capture, Transcript]:
        self.put_back()  # what the one before has left: no two have the same fake mode
        return capture_program(self.program, self.run, self.plan, records, self.moving)


def _needed_at(what: str, line: SourceLine | None) -> str:
    return f"the program needs the {what} itself{f' at {line}' if line is not None else ''}"


def _runs_otherwise(line: SourceLine | None) -> str:
    return f"with a formula in its place the program runs otherwise{f' at {line}' if line is not None else ''}"


def owner_key(owner: Owner) -> Sized | None:
    """Where the tensor of an owner is, if that is a place or among the arguments."""
    if isinstance(owner, ArgumentOwner):
        return owner.position
    return owner.place if isinstance(owner, PlaceOwner) else None


def _fits(version: weakref.ref[Specialization]) -> Fits:
    def fits(call: Call) -> bool:
        kept = version()
        return kept is not None and kept.inputs_of(call) is not None

    return fits


def why_not_resized(captured: Capture) -> str | None:
    """Why a program must not be run for other sizes than it was captured for."""
    for node in captured.program.module.graph.nodes:
        if node.op == "call_function" and not _is_operator(node.target):
            return "what runs as Python at each call keeps the sizes that it was captured with"
    for site in captured.program.sites:
        if site.baseline is None or not site.baseline.decaying_average:
            continue
        of_all_data = {rows.plate for rows in site.baseline.rows}
        if any(isinstance(p.full_size if p.name in of_all_data else p.size, Size) for p in site.plates):
            return "a decaying average has an element for each element of a plate"
    return None


def _is_operator(target: Any) -> bool:
    """Whether a node is torch's own: an operator, arithmetic of sizes, or a switch of autograd and autocast."""
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in ("aten", "prims")
    return target is torch._C._set_grad_enabled or target in AUTOCAST or target.__module__ in _ARITHMETIC


_ARITHMETIC = frozenset(("_operator", "math", "builtins", "torch"))
