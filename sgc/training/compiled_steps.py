"""The compiled steps of one loss module and one optimizer, each kept with what it is valid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sgc.emit.backends.protocol import StepBackend
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.train_step import new_flag
from sgc.errors import SgcError, StandInWarning
from sgc.runtime.specializing.compiler import build_step, differentiate_loss
from sgc.runtime.specializing.specialization import Specialization
from sgc.tracing.source import warn
from sgc.training.bound_step import Bound
from sgc.training.hindrances import UNTRACEABLE, reason_of, unheld
from sgc.training.optimizers.members import Member, obstacle
from sgc.training.optimizers.shadows import OwnSchedule, Uninitialised, own_schedules
from sgc.training.optimizers.update import Update

_MOVING = frozenset({"lr"})
"""Hyperparameters that are inputs of a compiled step from the start; others become so when they change."""

_VALUES = 4
"""How many compiled steps there may be for the values of a hyperparameter that cannot be an input."""


@dataclass
class _Built:
    """A built step, and what it is valid for."""

    specialization: Specialization
    signature: Any
    step: BuiltStep


@dataclass
class CompiledSteps:
    """Builds steps, and binds them to the tensors of optimizers.

    ``bound`` are the bound ones, the latest first. Where the optimizer must run in Python, one warning says why, and
    ``outside`` holds the reasons.
    """

    bound: list[Bound] = field(default_factory=list)
    outside: set[str] = field(default_factory=set)
    _built: list[_Built] = field(default_factory=list)
    _untraceable: list[tuple[Specialization, Any]] = field(default_factory=list)
    _moving: frozenset[str] = _MOVING  # hyperparameters that are inputs of the step
    _constant: frozenset[str] = frozenset()  # those that cannot be: each value is another step
    _halted: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def built(self) -> int:
        """How many different steps are kept; several bound ones may share one."""
        return len(self._built)

    def find(
        self, specialization: Specialization, members: Sequence[Member], parameters: Sequence[Tensor]
    ) -> Bound | None:
        """The step that is bound to these optimizers and parameters as they are now."""
        for bound in self.bound:
            if bound.specialization is specialization and bound.update.holds(members, parameters):
                return bound
        return None

    def bind(
        self,
        specialization: Specialization,
        backend: StepBackend,
        members: list[Member],
        tensors: list[Tensor],
        parameters: list[Tensor],
    ) -> Bound | None:
        """A step for optimizers that are new, or that someone has changed; None where they must run in Python."""
        why = obstacle(members) or unheld(specialization, tensors, members)
        if why is None:
            self._note_moved(specialization)
            why = self._too_many_values(specialization)
        if why is not None:
            self.say_outside(why)
            return None
        traced = self._trace(specialization, backend, members, tensors, parameters)
        if traced is None:
            return None
        update, built = traced
        for member in members:
            member.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers look for it, and warn
        differentiated = differentiate_loss(specialization, tensors)
        own = [*update.state, self._flag(differentiated.device)]
        names = specialization.capture.program.written
        by_program = {i for i, declared in enumerate(specialization.inputs) if declared.name in names}
        behind = range(
            len(specialization.inputs), len(tensors) + len(update.state)
        )  # averages and the optimizer's state
        written = frozenset(by_program.union(differentiated.gradient_of, behind))
        bound = Bound(specialization, backend, update, built, own, written)
        others = [other for other in self.bound if other.specialization is not specialization]
        self.bound = [bound, *others][: specialization.options.cache_size]
        return bound

    def say_outside(self, why: str) -> None:
        """Warn, once, that the optimizer runs outside of the compiled step."""
        if why not in self.outside:
            self.outside.add(why)
            warn(f"the optimizer runs outside of the compiled step: {why}", StandInWarning)

    # -- which hyperparameters are inputs

    def _note_moved(self, specialization: Specialization) -> None:
        """A hyperparameter that has changed is an input of the next step."""
        for old in self.bound:
            if old.specialization is specialization:
                self._moving |= old.update.moved() - self._constant

    def _too_many_values(self, specialization: Specialization) -> str | None:
        """Why no step is built for one more value of what cannot be an input."""
        count = sum(built.specialization is specialization for built in self._built)
        if self._constant and count > _VALUES:
            return f"{', '.join(sorted(self._constant))} of the optimizer changes, and it branches on it"
        return None

    # -- building

    def _trace(
        self,
        specialization: Specialization,
        backend: StepBackend,
        members: list[Member],
        tensors: list[Tensor],
        parameters: list[Tensor],
    ) -> tuple[Update, BuiltStep] | None:
        """The optimizers' update and the step with it, traced with as many inputs as it takes; None if it cannot be."""
        OwnSchedule(own_schedules(members)).keep_as_tensors(members)
        while True:
            update = Update(members, parameters, self._moving)
            if any(known is specialization and s == update.signature for known, s in self._untraceable):
                return None
            try:
                return update, self._build(specialization, backend, update, tensors)
            except OwnSchedule as schedule:
                schedule.keep_as_tensors(members)  # and trace again
            except Uninitialised:
                return None  # the step in Python makes the optimizer's state
            except UNTRACEABLE as error:
                if isinstance(error, SgcError):
                    raise
                if not self._moving > _MOVING:
                    self._untraceable.append((specialization, update.signature))
                    kinds = {type(member.optimizer).__qualname__ for member in members}
                    self.say_outside(f"{', '.join(sorted(kinds))} cannot be traced ({reason_of(error)})")
                    return None
                # The optimizer branches on a number that became an input: trace again with all but lr as constants.
                self._constant, self._moving = self._constant | (self._moving - _MOVING), _MOVING

    def _build(
        self, specialization: Specialization, backend: StepBackend, update: Update, tensors: list[Tensor]
    ) -> BuiltStep:
        for known in self._built:
            if known.specialization is specialization and known.signature == update.signature:
                return known.step
        try:
            step = build_step(specialization, backend, tensors, update.state, update)
        except UNTRACEABLE as error:
            if isinstance(error, SgcError) or not update.has_capturable:
                raise
            step = build_step(specialization, backend, tensors, update.state, partial(update, capturable=True))
        built = _Built(specialization, update.signature, step)
        self._built = [built, *self._built][: specialization.options.cache_size]
        return step

    def _flag(self, device: torch.device) -> Tensor:
        """The tensor of a device that a step sets when it halts."""
        if device not in self._halted:
            self._halted[device] = new_flag(device)
        return self._halted[device]
