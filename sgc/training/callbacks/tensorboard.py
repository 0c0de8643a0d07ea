"""Writes the course of a run for TensorBoard."""

from __future__ import annotations

import math
import os
from typing import Any

from sgc.errors import ArgumentError
from sgc.training.callbacks.callback import Callback, TrainingRun, checked_every
from sgc.training.callbacks.monitor import Monitor


class TensorBoard(Callback):
    """Writes event files, for ``tensorboard --logdir``: ``svi.run(..., callbacks=[sgc.TensorBoard("runs/first")])``.

    ``loss/step`` is the mean loss of each ``every`` steps, ``loss/epoch`` that of each epoch, by steps. What a monitor
    of the same run records follows: ``gradient norm``, ``gradient norm of/…``, ``variance``, ``share of/…``. In a
    further run with the same object the steps are counted on.

    :param log_dir: the directory; by default one below ``runs`` with date and host (torch's ``SummaryWriter``).
    :param every: after how many steps a loss is written.
    :raises sgc.errors.ArgumentError: if the package tensorboard is not installed, or ``every`` is no number of steps.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, every: int = 100) -> None:
        checked_every(every)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ArgumentError(
                f"writing for TensorBoard needs the package tensorboard: {error}", remedy="pip install tensorboard"
            ) from error
        self.every = every
        self._make = SummaryWriter
        self._log_dir = None if log_dir is None else os.fspath(log_dir)
        self._writer: Any = None
        self._before = 0  # steps of earlier runs
        self._written = 0  # records of the monitor

    def on_train_begin(self, run: TrainingRun) -> None:
        """Open the files."""
        self._writer, self._written = self._make(self._log_dir), 0
        self._log_dir = self._writer.log_dir

    def on_step_end(self, run: TrainingRun) -> None:
        """Write the mean loss, and what was monitored."""
        self._add("loss/step", run.mean_loss(self.every or 1), run.step)
        self._write_monitored(run)

    def on_epoch_end(self, run: TrainingRun) -> None:
        """Write the epoch's loss."""
        self._add("loss/epoch", run.epoch_loss(), run.step)

    def on_train_end(self, run: TrainingRun) -> None:
        """Close the files."""
        if self._writer is not None:
            self._write_monitored(run)
            self._writer.close()
            self._writer = None
        self._before += run.step

    def _write_monitored(self, run: TrainingRun) -> None:
        monitor = next((callback for callback in run.callbacks if isinstance(callback, Monitor)), None)
        if monitor is None:
            return
        records = monitor.monitored.records
        for record in records[self._written :]:
            if record.gradient_norms:
                self._add("gradient norm", math.hypot(*record.gradient_norms.values()), record.step)
            for name, norm in record.gradient_norms.items():
                self._add(f"gradient norm of/{name}", norm, record.step)
            if record.shares:
                self._add("variance", record.variance, record.step)
            for name, share in record.shares.items():
                self._add(f"share of/{name}", share, record.step)
        self._written = len(records)

    def _add(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, self._before + step)
