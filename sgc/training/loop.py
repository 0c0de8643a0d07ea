"""A run of training: many steps, guards checked once for a stretch of them, with epochs, callbacks and progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgc.guards.base import Call
from sgc.training.callbacks.callback import Callback, TrainingRun
from sgc.training.callbacks.calling import Calling
from sgc.training.callbacks.monitor import Monitor
from sgc.training.interrupts import postponed_interrupt
from sgc.training.losses import RunResult
from sgc.training.minibatches import Minibatches
from sgc.training.progress import Bar, Lines, progress
from sgc.training.steps_protocol import Steps
from sgc.training.stretches import Stretches

_STRETCH = 0.1
"""Seconds that a stretch of steps takes, about: as long as the report of the progress and a NaN may wait."""

_LONGEST = 1000
"""The most steps in a stretch."""


@dataclass
class Loop:
    """A run of training in progress; :meth:`result` may be asked for at any time, after an interruption too.

    :param steps: takes the steps.
    :param total: how many steps there will be, if that is known.
    :param progress_bar: whether to show the progress, with the running ELBO.
    :param callbacks: what is called during the run.
    :param latest: the call that the latest step was of, during the run.
    :param stopped: why a callback has ended the run.
    """

    steps: Steps
    total: int | None
    progress_bar: bool
    callbacks: Sequence[Callback] = ()
    latest: Call | None = None
    stopped: str | None = None
    _began: float = field(default_factory=time.perf_counter)
    _ended: float | None = None
    _minibatches: Minibatches | None = None
    _epoch_ends: list[int] = field(default_factory=list)
    _data_size: int | None = None
    _began_uncompiled: bool = False

    def __post_init__(self) -> None:
        self._stretches = Stretches(self.steps, self._place)

    def repeat(self, svi: Any, call: Call, steps: int) -> None:
        """Take a number of steps with the same arguments."""

        def take_them(take: Callable[[Iterable[tuple[Call, int]]], bool]) -> None:
            take([(call, steps)])

        self._run(svi, take_them)

    def over(self, svi: Any, minibatches: Minibatches) -> None:
        """Take a step for each minibatch."""
        self._minibatches = minibatches

        def take_epochs(take: Callable[[Iterable[tuple[Call, int]]], bool]) -> None:
            for epoch in minibatches:
                if not take((call, 1) for call in epoch):
                    return

        self._run(svi, take_epochs)

    def result(self) -> RunResult:
        """The losses so far."""
        monitor = next((callback for callback in self.callbacks if isinstance(callback, Monitor)), None)
        losses, ended = self._stretches.losses.all(), self._ended
        return RunResult(
            losses,
            (ended or time.perf_counter()) - self._began,
            epoch_ends=tuple(end for end in self._epoch_ends if end <= len(losses)),
            data_size=self.steps.data_size() if ended is None else self._data_size,
            stopped=self.stopped,
            monitored=None if monitor is None else monitor.monitored,
        )

    # -- what callbacks see

    @property
    def taken(self) -> int:
        """How many steps were taken or sent."""
        return self._stretches.taken

    @property
    def epoch(self) -> int | None:
        """The number of the present epoch, where there are epochs."""
        return None if self._minibatches is None else self._minibatches.epoch

    @property
    def steps_in_epoch(self) -> int:
        """How many steps of the present epoch were taken."""
        return self.taken - (0 if self._minibatches is None else self._minibatches.before_epoch)

    def latest_losses(self, steps: int) -> list[float]:
        """The losses of the latest steps, those that are known."""
        return self._stretches.losses.last(steps)

    def _run(self, svi: Any, take_all: Callable[[Callable[[Iterable[tuple[Call, int]]], bool]], None]) -> None:
        """Take all steps, with the callbacks before, during and after them."""
        run = TrainingRun(svi, self)
        calling = Calling(self.callbacks, run)
        try:
            calling.train_begin()
            with progress(self.total, wanted=self.progress_bar) as shown, postponed_interrupt() as interrupted:
                try:
                    if self.stopped is None:
                        take_all(lambda stretches: self._take(stretches, calling, shown, interrupted))
                finally:
                    self._settle_in_turn()
                    self._ended, self._data_size = time.perf_counter(), self.steps.data_size()
        except BaseException as error:
            run.error = error
            raise
        finally:
            try:
                calling.train_end()
            finally:
                self.latest = None  # a minibatch is not kept alive by the result

    def _take(
        self,
        stretches: Iterable[tuple[Call, int]],
        calling: Calling,
        shown: Bar | Lines | None,
        interrupted: Collection[Any],
    ) -> bool:
        """Take the steps of an epoch, or of a run without epochs; whether there may be others after them."""
        for call, steps in stretches:
            self.latest = call
            length, left = 1, steps
            while left:
                started, before = time.perf_counter(), self.taken
                due = calling.steps_until_due(before)
                try:
                    with self.steps.turn():
                        self._stretches.take(call, min(length, left, due or left), interrupted)
                except Exception as error:
                    self._stretches.note_where(error)
                    raise
                taken = self.taken - before
                left -= taken
                if shown is not None:
                    self._began_uncompiled |= self.steps.runs_uncompiled()
                    shown.show(taken, self._state)
                each = (time.perf_counter() - started) / taken
                length = max(1, min(_LONGEST, int(_STRETCH / each)))
                if due == taken:
                    self._settle_in_turn()
                    calling.step_end(self.taken)
                if interrupted or self.stopped is not None:
                    return False
        if self._minibatches is not None:
            self._epoch_ends.append(self.taken)
            if self.callbacks:
                self._settle_in_turn()
                calling.epoch_end()
        return not interrupted and self.stopped is None

    def _settle_in_turn(self) -> None:
        """Wait for what was sent."""
        with self.steps.turn():
            self._stretches.settle()

    # -- in words

    def _place(self, number: int) -> str:
        return "" if self._minibatches is None else self._minibatches.place(number)

    def _state(self) -> str:
        """The running ELBO, and what takes the steps where that is not compiled from the start."""
        tier = ("eager" if self.steps.runs_uncompiled() else "compiled") if self._began_uncompiled else ""
        return ", ".join(part for part in (self._elbo(), tier) if part)

    def _elbo(self) -> str:
        """The running ELBO: for each datum where the loss says how many there are, else as it is.

        The mean is one over the minibatches of an epoch, of whatever sizes, as soon as there were as many; of a long
        epoch, over the last thousand.
        """
        length = None if self._minibatches is None else self._minibatches.epoch_length
        losses = self._stretches.losses.last(min(length or _RECENT, _LONGEST))
        if not losses:
            return ""
        loss = sum(losses) / len(losses)
        size = self.steps.data_size()
        return f"ELBO {-loss:.4g}" if size is None else f"ELBO {-loss / size:.4g} per datum"


_RECENT = 100
"""Without epochs the running ELBO is the mean of this many losses, as many as the text of a result tells."""
