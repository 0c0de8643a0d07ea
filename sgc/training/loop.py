"""Many steps: losses stay on the device, guards are checked once for a stretch of steps with the same arguments."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from sgc.capturing.randomness import device_random_state, set_device_random_state
from sgc.errors import ArgumentError, NanLossError
from sgc.run.guards import Call
from sgc.run.validity import Trial
from sgc.training.bound import Step
from sgc.training.nan import nan_loss_error

_STRETCH = 0.1
"""Seconds that a stretch of steps takes, about: as long as the progress bar and a NaN may wait."""

_LONGEST = 1000
"""The most steps in a stretch."""


@dataclass(frozen=True)
class RunResult:
    """What a run of training gives.

    ``losses`` is a float tensor on the CPU, of one loss (minus the ELBO, in nats) for each step. ``seconds`` is how
    long the run took, captures and compilations included.
    """

    losses: Tensor
    seconds: float

    def __str__(self) -> str:
        count = len(self.losses)
        last = f", the mean loss of the last {min(count, 100)}: {self.losses[-100:].mean():.4f}" if count else ""
        return f"{count} steps in {self.seconds:.1f} s{last}"


class Steps(Protocol):
    """Takes steps, compiled ones or others."""

    def ready(self, call: Call) -> Step | None:
        """The compiled step, or None where this one must be taken in Python."""
        ...

    def eagerly(self, call: Call) -> Tensor:
        """Take a step in Python; the loss, a 0-d tensor."""
        ...

    def judged(self, step: Step, trial: Trial | None) -> Tensor | None:
        """Pyro's error for a step that halted because it was not valid; None if it was because of a NaN."""
        ...

    def nan_error(self, number: int, call: Call) -> NanLossError:
        """What to raise if the loss of a step in Python was NaN."""
        ...


@dataclass
class Loop:
    """A run of training in progress; :meth:`result` may be asked for at any time, after an interruption too.

    :param steps: takes the steps.
    :param total: how many steps there will be, if that is known.
    :param progress_bar: whether to draw a bar with the running ELBO.
    """

    steps: Steps
    total: int | None
    progress_bar: bool
    _losses: list[Tensor] = field(default_factory=list)
    _count: int = 0
    _began: float = field(default_factory=time.perf_counter)
    _ended: float | None = None

    def repeat(self, call: Call, steps: int) -> None:
        """Take a number of steps with the same arguments."""
        self._take((call, steps) for _ in range(1))

    def over(self, calls: Iterable[Call]) -> None:
        """Take a step for each call."""
        self._take((call, 1) for call in calls)

    def result(self) -> RunResult:
        """The losses so far."""
        losses = torch.cat([part.cpu() for part in self._losses]) if self._losses else torch.empty(0)
        return RunResult(losses, (self._ended or time.perf_counter()) - self._began)

    def _take(self, stretches: Iterable[tuple[Call, int]]) -> None:
        with _bar(self.total, self.progress_bar) as bar, _postponed_interrupt() as interrupted:
            try:
                for call, steps in stretches:
                    length, left = 1, steps
                    while left:
                        started = time.perf_counter()
                        taken = self._stretch(call, min(length, left), interrupted)
                        left -= taken
                        if bar is not None:
                            bar.update(taken)
                            bar.set_postfix_str(f"ELBO {-float(self._losses[-1].mean()):.4g}", refresh=False)
                        if interrupted:
                            return
                        each = (time.perf_counter() - started) / taken
                        length = max(1, min(_LONGEST, int(_STRETCH / each)))
            finally:
                self._ended = time.perf_counter()

    def _stretch(self, call: Call, steps: int, interrupted: list[int]) -> int:
        """Take up to so many steps, without looking at the losses in between; how many were taken."""
        step = self.steps.ready(call)
        if step is None:
            loss = self.steps.eagerly(call).reshape(1)
            if loss.isnan():
                raise self.steps.nan_error(self._count + 1, call)
            self._losses.append(loss)
            self._count += 1
            return 1
        device = step.halted.device
        before = device_random_state(device)
        losses = step(steps if step.specialization.reads_inputs_only else 1, interrupted)
        if not step.halted:
            self._losses.append(losses)
            self._count += len(losses)
            return len(losses)
        valid = int(losses.isnan().int().argmax())
        self._losses.append(losses[:valid])
        self._count += valid
        try:
            # A halted step writes nothing: running it again only draws, up to where the step with the NaN began.
            set_device_random_state(before, device)
            if valid:
                step(valid)
            before = device_random_state(device)
            trial = step.trial(call, step.random_state())
            step.once()
            resumed = self.steps.judged(step, trial)
            if resumed is None:
                set_device_random_state(before, device)
                raise nan_loss_error(self._count + 1, step.specialization, step.inputs)
            before = device_random_state(device)
            self._losses.append(resumed.reshape(1))
            self._count += 1
            return valid + 1
        finally:
            set_device_random_state(before, device)
            step.halted.zero_()


@contextmanager
def _postponed_interrupt() -> Iterator[list[int]]:
    """Note Ctrl-C instead of raising at once, in the middle of a step perhaps; it is raised after the step."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted  # Python delivers signals to the main thread alone
        return

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted  # the user's own handler decides
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt  # asked for twice: the step may be stuck
        noted.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt


@contextmanager
def _bar(total: int | None, wanted: bool) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ArgumentError("a progress bar needs tqdm", remedy="pip install tqdm, or progress_bar=False") from error
    with tqdm(total=total, unit="step") as bar:
        yield bar
