"""Many steps: losses stay on the device, guards are checked once for a stretch of steps with the same arguments."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat

import torch
from torch import Tensor

from sgc.capture.state.random_state import (
    device_random_state,
    random_state,
    restore_random_state,
    set_device_random_state,
)
from sgc.errors import NanLossError
from sgc.guards.base import Call
from sgc.runtime.async_number import LateNumber
from sgc.runtime.validity import RandomState, Trial
from sgc.training.bound_step import Step
from sgc.training.interrupts import postponed_interrupt
from sgc.training.minibatches import Minibatches
from sgc.training.nan_loss import nan_loss_error
from sgc.training.progress import progress
from sgc.training.result import RunResult

_STRETCH = 0.1
"""Seconds that a stretch of steps takes, about: as long as the report of the progress and a NaN may wait."""

_LONGEST = 1000
"""The most steps in a stretch."""

_GROUP = 16
"""How many minibatches a GPU is sent before it is asked whether one has halted; one such group more may be ahead."""


class Steps(Protocol):
    """Takes steps, compiled ones or others."""

    def turn(self) -> AbstractContextManager[None]:
        """Around calls of the others: other threads wait."""
        ...

    def ready(self, call: Call) -> Step | None:
        """The compiled step, or None where this one must be taken in Python."""
        ...

    def eagerly(self, call: Call) -> Tensor:
        """Take a step in Python; the loss, a 0-d tensor."""
        ...

    def judged(self, step: Step, trial: Trial | None, failure: Exception | None = None) -> Tensor | None:
        """Pyro's error for a step that was not valid, or has raised ``failure``; None if its loss was NaN."""
        ...

    def nan_error(self, step: str, call: Call) -> NanLossError:
        """What to raise if the loss of a step in Python was NaN.

        :param step: which one, in words.
        """
        ...

    def data_size(self) -> int | None:
        """How many data the latest loss is of, where subsampling plates say so."""
        ...


@dataclass
class _Group:
    """Stretches of steps that were sent to a device, each with the call, the step and the losses.

    :param before: the random state of the device before them.
    """

    before: Tensor
    sent: list[tuple[Call, Step, Tensor]] = field(default_factory=list)
    halted: SupportsFloat = 0.0


@dataclass
class Loop:
    """A run of training in progress; :meth:`result` may be asked for at any time, after an interruption too.

    :param steps: takes the steps.
    :param total: how many steps there will be, if that is known.
    :param progress_bar: whether to show the progress, with the running ELBO.
    """

    steps: Steps
    total: int | None
    progress_bar: bool
    _losses: list[Tensor] = field(default_factory=list)
    _numbers: list[float] = field(default_factory=list)  # losses behind these, and what dtype they have
    _dtype: torch.dtype | None = None
    _count: int = 0
    _groups: deque[_Group] = field(default_factory=deque)
    _pending: int = 0  # how many steps they have
    _began: float = field(default_factory=time.perf_counter)
    _ended: float | None = None
    _minibatches: Minibatches | None = None
    _data_sizes: set[int | None] = field(default_factory=set)

    def repeat(self, call: Call, steps: int) -> None:
        """Take a number of steps with the same arguments."""
        self._take((call, steps) for _ in range(1))

    def over(self, minibatches: Minibatches) -> None:
        """Take a step for each minibatch."""
        self._minibatches = minibatches
        self._take((call, 1) for call in minibatches)

    def result(self) -> RunResult:
        """The losses so far."""
        self._gather()
        one_device = len({part.device for part in self._losses}) == 1
        parts = self._losses if one_device else [part.cpu() for part in self._losses]
        losses = torch.cat(parts).cpu() if parts else torch.empty(0)
        return RunResult(losses, (self._ended or time.perf_counter()) - self._began)

    def _take(self, stretches: Iterable[tuple[Call, int]]) -> None:
        with progress(self.total, self.progress_bar) as shown, postponed_interrupt() as interrupted:
            try:
                for call, steps in stretches:
                    length, left = 1, steps
                    while left:
                        started, before = time.perf_counter(), self._count + self._pending
                        try:
                            with self.steps.turn():
                                self._stretch(call, min(length, left), interrupted)
                        except Exception as error:
                            self._note_where(error)
                            raise
                        taken = self._count + self._pending - before
                        left -= taken
                        if shown is not None:
                            self._data_sizes.add(self.steps.data_size())
                            shown.show(taken, self._elbo)
                        if interrupted:
                            return
                        each = (time.perf_counter() - started) / taken
                        length = max(1, min(_LONGEST, int(_STRETCH / each)))
            finally:
                with self.steps.turn():
                    self._settle()
                self._ended = time.perf_counter()

    def _stretch(self, call: Call, steps: int, interrupted: Collection[Any] = ()) -> None:
        """Take up to so many steps, without looking at the losses in between."""
        step = self.steps.ready(call)
        if step is None:
            self._settle()
            self._note(self._in_python(call))
            return
        device = step.halted.device
        if step.specialization.tally is not None and device.type == "cpu":
            self._settle()
            self._speculate(call, step, steps if step.specialization.reads_inputs_only else 1)
            return
        if steps == 1 and device.type == "cpu":
            self._settle()
            before = device_random_state(device)
            loss = step.once()
            if loss == loss:
                self._note_number(loss, step.bound.dtype)
            else:
                self._resume(_Group(before, [(call, step, torch.tensor([loss], device="cpu"))]))
            return
        if self._groups and self._groups[-1].sent[0][1].halted.device != device:
            self._settle()
        begins = not self._groups or len(self._groups[-1].sent) == _GROUP
        group = _Group(device_random_state(device)) if begins else self._groups[-1]
        wanted = steps if step.specialization.reads_inputs_only else 1
        try:
            losses = step(wanted, interrupted)
        except Exception as error:
            self._note_where(error, wanted)
            raise
        if begins:
            self._groups.append(group)
        group.sent.append((call, step, losses))
        self._pending += 1 if steps == 1 else len(losses)
        if device.type == "cpu" or steps > 1:
            self._settle()
        elif len(group.sent) == _GROUP:
            group.halted = LateNumber(step.halted)
            self._settle(1)

    def _speculate(self, call: Call, step: Step, steps: int) -> None:
        """Take up to so many steps that assume which way branches on samples go, up to one that Pyro takes."""
        before, failure = RandomState.now(step.halted.device), None
        try:
            losses, before = step.until_halted(steps)
        except Exception as error:  # on the captured branch, which may be the wrong one
            losses, failure = torch.tensor([math.nan]), error
        if not losses[-1].isnan():
            self._note(losses)
            return
        if len(losses) > 1:
            self._note(losses[:-1])
        resumed = self.steps.judged(step, step.trial(call, before), failure)
        if resumed is None:
            before.restore()
            raise nan_loss_error(self._which(self._count + 1), step.specialization, step.inputs)
        self._note(resumed.reshape(1))

    def _in_python(self, call: Call) -> Tensor:
        """The loss of a step in Python, of shape ``[1]``.

        :raises NanLossError: if it is NaN; the random state is the one before the step then.
        """
        before = random_state()
        loss = self.steps.eagerly(call).reshape(1)
        if loss.isnan():
            restore_random_state(before)
            raise self.steps.nan_error(self._which(self._count + 1), call)
        return loss

    def _settle(self, ahead: int = 0) -> None:
        """Look whether what was sent has halted, until no more than so many groups are on their way."""
        while len(self._groups) > ahead:
            group = self._groups.popleft()
            if len(group.sent) < _GROUP:
                group.halted = group.sent[-1][1].halted
            if not float(group.halted):
                for _, _, losses in group.sent:
                    self._pending -= len(losses)
                    self._note(losses)
                continue
            later, self._groups, self._pending = self._groups, deque(), 0
            rest = self._resume(group)
            # A step that halts is the last one that does anything: those that were sent after it have only drawn.
            for call in [*rest, *(call for other in later for call, _, _ in other.sent)]:
                self._stretch(call, 1)

    def _resume(self, group: _Group) -> list[Call]:
        """Go on with a group that has halted, up to the step where it did and with that one, or raise its error.

        :return: the calls behind it.
        """
        halted = next(i for i, (_, _, losses) in enumerate(group.sent) if losses.isnan().any())
        call, step, losses = group.sent[halted]
        before, device = group.before, step.halted.device
        try:
            # A halted step writes nothing: running it again only draws, up to where the step with the NaN began.
            set_device_random_state(before, device)
            for _, good, found in group.sent[:halted]:
                good(len(found))
                self._note(found)
            valid = int(losses.isnan().int().argmax())
            if valid:
                step(valid)
                self._note(losses[:valid])
            before = device_random_state(device)
            trial = step.trial(call, step.random_state())
            step.once()
            try:
                resumed = self.steps.judged(step, trial)
            except Exception as error:
                self._note_where(error)
                raise
            if resumed is None:
                set_device_random_state(before, device)
                raise nan_loss_error(self._which(self._count + 1), step.specialization, step.inputs)
            before = device_random_state(device)
            self._note(resumed.reshape(1))
        finally:
            set_device_random_state(before, device)
            step.halted.zero_()
        return [later for later, _, _ in group.sent[halted + 1 :]]

    def _note(self, losses: Tensor) -> None:
        self._gather()
        self._losses.append(losses)
        self._count += len(losses)

    def _note_number(self, loss: float, dtype: torch.dtype) -> None:
        if dtype is not self._dtype:
            self._gather()
            self._dtype = dtype
        self._numbers.append(loss)
        self._count += 1

    def _gather(self) -> None:
        if self._numbers:
            self._losses.append(torch.tensor(self._numbers, dtype=self._dtype, device="cpu"))
            self._numbers = []

    # -- in words

    def _which(self, number: int) -> str:
        """The step of this number, counted from 1, and its minibatch."""
        place = "" if self._minibatches is None else f" ({self._minibatches.place(number)})"
        return f"step {number}{place}"

    def _note_where(self, error: Exception, steps: int = 1) -> None:
        """Note on an error in which step it was raised, unless it is one that says so, or has been noted."""
        if isinstance(error, NanLossError) or any(note.startswith(_RAISED) for note in getattr(error, "__notes__", ())):
            return
        first = self._count + self._pending + 1
        where = self._which(first) if steps == 1 else f"one of the steps {first} to {first + steps - 1}"
        error.add_note(f"{_RAISED} {where} of the run; svi.result has the losses before it")

    def _elbo(self) -> str:
        """The running ELBO: for each datum where the loss says how many there are, else as it is.

        The mean is one over the minibatches of an epoch, of whatever sizes, as soon as there were so many; of a long
        epoch, over the last thousand.
        """
        length = None if self._minibatches is None else self._minibatches.epoch_length
        losses = self._last(min(length or _RECENT, _LONGEST))
        if not losses:
            return ""
        loss = sum(losses) / len(losses)
        (size,) = self._data_sizes if len(self._data_sizes) == 1 else (None,)
        return f"ELBO {-loss:.4g}" if size is None else f"ELBO {-loss / size:.4g} per datum"

    def _last(self, count: int) -> list[float]:
        """The last losses, so many if there are."""
        losses = self._numbers[-count:]
        parts: list[Tensor] = []
        missing = count - len(losses)
        for part in reversed(self._losses):
            if missing <= 0:
                break
            parts.insert(0, part[-missing:])
            missing -= len(parts[0])
        if len({part.device for part in parts}) > 1:
            parts = [part.cpu() for part in parts]
        return [*(torch.cat(parts).tolist() if parts else []), *losses]


_RAISED = "raised in"

_RECENT = 100
"""The running ELBO is the mean of so many losses, where there are no epochs: as many as a result tells."""
