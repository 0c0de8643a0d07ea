"""Calls the callbacks of a run, each when it is due."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from sgc.training.callbacks.callback import Callback, TrainingRun, checked_every, shown

RAISED = "raised in"
"""How a note begins that says where an error was raised."""


class Calling:
    """The callbacks of one run.

    :param run: what they are given.
    """

    def __init__(self, callbacks: Sequence[Callback], run: TrainingRun) -> None:
        self._callbacks = callbacks
        self._run = run
        self._at_steps: list[tuple[int, Callback]] = []

    def train_begin(self) -> None:
        """Before the first step.

        :raises sgc.errors.ArgumentError: if an ``every`` is no number of steps.
        """
        for callback in self._callbacks:
            self._call(callback, "on_train_begin")
        for callback in self._callbacks:
            if callback.every is not None:
                checked_every(callback.every)
                if type(callback).on_step_end is not Callback.on_step_end:
                    self._at_steps.append((callback.every, callback))

    def steps_until_due(self, taken: int) -> int | None:
        """How many steps may be taken before the next ``on_step_end``; None: any number."""
        return min(every - taken % every for every, _ in self._at_steps) if self._at_steps else None

    def step_end(self, taken: int) -> None:
        """After a step."""
        for every, callback in self._at_steps:
            if taken % every == 0:
                self._call(callback, "on_step_end")

    def epoch_end(self) -> None:
        """After an epoch."""
        for callback in self._callbacks:
            self._call(callback, "on_epoch_end")

    def train_end(self) -> None:
        """After the run, for every callback, whatever others raise."""
        with ExitStack() as last_first:
            for callback in reversed(self._callbacks):
                last_first.callback(self._call, callback, "on_train_end")

    def _call(self, callback: Callback, name: str) -> None:
        try:
            getattr(callback, name)(self._run)
        except Exception as error:
            where = f"{name} of {shown(callback)}, after step {self._run.step} of the run"
            error.add_note(f"{RAISED} {where}; svi.result has the losses until then")
            raise
