"""Stretches of steps with the same arguments: the ways to take them, and what follows where one halts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from sgc.errors import NanLossError
from sgc.guards.base import Call
from sgc.runtime.async_number import AsyncNumber
from sgc.runtime.validity import RandomState
from sgc.tracing.state.random_state import (
    device_random_state,
    random_state,
    restore_random_state,
    set_device_random_state,
)
from sgc.training.bound_step import Step
from sgc.training.callbacks.calling import RAISED
from sgc.training.losses import Losses
from sgc.training.nan_loss import nan_loss_error
from sgc.training.steps_protocol import Steps

_GROUP = 16
"""How many minibatches a GPU is sent before it is asked whether one has halted; one such group more may be ahead."""


@dataclass
class _Group:
    """Stretches of steps that were sent to a device, each with the call, the step and the losses.

    :param before: the random state of the device before them.
    """

    before: Tensor
    sent: list[tuple[Call, Step, Tensor]] = field(default_factory=list)
    flag: SupportsFloat | None = None
    """Whether one of them has halted, on its way to the host."""

    @property
    def device(self) -> torch.device:
        """The one that they were sent to."""
        return self.sent[0][1].halted.device

    @property
    def is_full(self) -> bool:
        return len(self.sent) == _GROUP

    def has_halted(self) -> bool:
        """Whether one of them has halted; this waits for the device."""
        return bool(float(self.sent[-1][1].halted if self.flag is None else self.flag))

    def first_halted(self) -> int:
        """The position of the stretch in which it was."""
        return next(i for i, (_, _, losses) in enumerate(self.sent) if losses.isnan().any())


@dataclass
class Stretches:
    """Takes stretches of steps, and keeps their losses.

    Steps on the CPU are looked at one stretch after another. A GPU is sent minibatches in groups, and asked late
    whether one of them has halted: a step that halts writes nothing, nor does one behind it.

    :param steps: takes the steps.
    :param place: which minibatch the step of a number is about, in words; empty where there are none.
    :param losses: those of the steps whose losses are known.
    """

    steps: Steps
    place: Callable[[int], str]
    losses: Losses = field(default_factory=Losses)
    _groups: deque[_Group] = field(default_factory=deque)
    _pending: int = 0  # how many steps they have

    @property
    def taken(self) -> int:
        """How many steps were taken or sent."""
        return self.losses.count + self._pending

    # -- the ways to take steps

    def take(self, call: Call, steps: int, interrupted: Collection[Any] = ()) -> None:
        """Take up to ``steps`` steps with the same arguments, at least one."""
        step = self.steps.ready(call)
        on_cpu = step is not None and step.halted.device.type == "cpu"
        if step is None:
            self.settle()
            self.losses.add(self._in_python(call))
        elif on_cpu and step.specialization.tally is not None:
            self.settle()
            self._speculate(call, step, steps if step.specialization.reads_inputs_only else 1)
        elif on_cpu and steps == 1:
            self.settle()
            self._once(call, step)
        else:
            self._send(call, step, steps, interrupted)
            if on_cpu or steps > 1:
                self.settle()
            elif self._groups[-1].is_full:
                self._groups[-1].flag = AsyncNumber(step.halted)
                self.settle(ahead=1)

    def _once(self, call: Call, step: Step) -> None:
        """Take one step on the CPU."""
        before = device_random_state(step.halted.device)
        loss = step.once()
        if loss == loss:
            self.losses.add_number(loss, step.bound.dtype)
        else:
            self._resume(_Group(before, [(call, step, torch.tensor([loss], device="cpu"))]))

    def _send(self, call: Call, step: Step, steps: int, interrupted: Collection[Any]) -> None:
        """Send steps to the device, in the latest group if that is not full, without a look at their losses."""
        device = step.halted.device
        if self._groups and self._groups[-1].device != device:
            self.settle()
        begins = not self._groups or self._groups[-1].is_full
        group = _Group(device_random_state(device)) if begins else self._groups[-1]
        wanted = steps if step.specialization.reads_inputs_only else 1
        try:
            losses = step(wanted, interrupted)
        except Exception as error:
            self.note_where(error, wanted)
            raise
        if begins:
            self._groups.append(group)
        group.sent.append((call, step, losses))
        self._pending += 1 if steps == 1 else len(losses)

    def _speculate(self, call: Call, step: Step, steps: int) -> None:
        """Take up to ``steps`` steps that assume which way branches on samples go, up to one that Pyro takes."""
        before, failure = RandomState.now(step.halted.device), None
        try:
            losses, before = step.until_halted(steps)
        except Exception as error:  # on the captured branch, which may be the wrong one
            losses, failure = torch.tensor([math.nan]), error
        if not losses[-1].isnan():
            self.losses.add(losses)
            return
        if len(losses) > 1:
            self.losses.add(losses[:-1])
        resumed = self.steps.judged(step, step.trial(call, before), failure)
        if resumed is None:
            before.restore()
            raise nan_loss_error(self._which(self.losses.count + 1), step.specialization, step.inputs)
        self.losses.add(resumed.reshape(1))

    def _in_python(self, call: Call) -> Tensor:
        """The loss of a step in Python, of shape ``[1]``.

        :raises NanLossError: if it is NaN; the random state is the one before the step then.
        """
        before = random_state()
        loss = self.steps.eagerly(call).reshape(1)
        if loss.isnan():
            restore_random_state(before)
            raise self.steps.nan_error(self._which(self.losses.count + 1), call)
        return loss

    # -- the results of steps that were sent

    def settle(self, ahead: int = 0) -> None:
        """Look whether what was sent has halted, until no more than ``ahead`` groups are on their way."""
        while len(self._groups) > ahead:
            group = self._groups.popleft()
            if not group.has_halted():
                for _, _, losses in group.sent:
                    self._pending -= len(losses)
                    self.losses.add(losses)
                continue
            later = [call for other in self._groups for call, _, _ in other.sent]
            self._groups.clear()
            self._pending = 0
            rest = self._resume(group)
            # A step that halts is the last one that does anything: those that were sent after it have only drawn.
            for call in (*rest, *later):
                self.take(call, 1)

    def _resume(self, group: _Group) -> list[Call]:
        """Go on with a group that has halted, up to the step where it did and with that one, or raise its error.

        The random state is the one after that step then; with an error, the one before it.

        :return: the calls behind it.
        :raises NanLossError: if its loss was NaN.
        :raises Exception: what Pyro raises, if it was not valid.
        """
        position = group.first_halted()
        call, step, _ = group.sent[position]
        state, device = group.before, step.halted.device
        try:
            state = self._replay(group, position)
            trial = step.trial(call, step.random_state())
            step.once()
            try:
                resumed = self.steps.judged(step, trial)
            except Exception as error:
                self.note_where(error)
                raise
            if resumed is None:
                set_device_random_state(state, device)
                raise nan_loss_error(self._which(self.losses.count + 1), step.specialization, step.inputs)
            state = device_random_state(device)
            self.losses.add(resumed.reshape(1))
        finally:
            set_device_random_state(state, device)
            step.halted.zero_()
        return [later for later, _, _ in group.sent[position + 1 :]]

    def _replay(self, group: _Group, position: int) -> Tensor:
        """Add the losses before the step that has halted; the random state where that step began.

        A halted step writes nothing, nor does any as long as it is marked as halted: they only draw again.

        :param position: of the stretch in which it was.
        """
        _, step, losses = group.sent[position]
        device = step.halted.device
        set_device_random_state(group.before, device)
        for _, good, known in group.sent[:position]:
            good(len(known))
            self.losses.add(known)
        good_steps = int(losses.isnan().int().argmax())
        if good_steps:
            step(good_steps)
            self.losses.add(losses[:good_steps])
        return device_random_state(device)

    # -- in words

    def _which(self, number: int) -> str:
        """The step of this number, counted from 1, and its minibatch."""
        place = self.place(number)
        return f"step {number} ({place})" if place else f"step {number}"

    def note_where(self, error: Exception, steps: int = 1) -> None:
        """Note on an error in which step it was raised, unless it is one that says so, or has been noted."""
        if isinstance(error, NanLossError) or any(note.startswith(RAISED) for note in getattr(error, "__notes__", ())):
            return
        first = self.taken + 1
        where = self._which(first) if steps == 1 else f"one of the steps {first} to {first + steps - 1}"
        error.add_note(f"{RAISED} {where} of the run; svi.result has the losses before it")
