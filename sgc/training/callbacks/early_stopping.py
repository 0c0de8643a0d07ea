"""Ends a run of training whose loss falls no longer."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from sgc.errors import ArgumentError
from sgc.training.callbacks.callback import Callback, TrainingRun, checked_every

_EVERY = 100
"""How many steps each mean is of in a run without epochs."""


class EarlyStopping(Callback):
    """Stops a run once the loss has not fallen for ``patience`` looks at it.

    A look is at the mean loss of each epoch; in a run of a number of steps, at that of each ``every`` steps.

    :param patience: after how many looks without an improvement the run ends.
    :param min_delta: by how much a loss must be below the best one, in nats, to be an improvement.
    :param every: look at the mean loss of so many steps each, also in a run with epochs.
    :param metric: what is looked at in place of the mean loss, the smaller the better: a function of the run, such as
        ``lambda run: run.svi.evaluate_loss(validation)``. NaN is no improvement.
    :param restore_best: put parameters, buffers and averages back to those at the best look when the run ends, if it
        does so by itself or through a callback. The optimizer's state stays.
    :raises sgc.errors.ArgumentError: if a number is out of range.
    """

    def __init__(
        self,
        patience: int = 10,
        min_delta: float = 0.0,
        *,
        every: int | None = None,
        metric: Callable[[TrainingRun], float] | None = None,
        restore_best: bool = False,
    ) -> None:
        if every is not None:
            checked_every(every)
        if patience < 1 or not min_delta >= 0.0:
            raise ArgumentError(f"patience is 1 or more and min_delta 0 or more, not {patience!r} and {min_delta!r}")
        self._given = every
        self._patience = patience
        self._min_delta = min_delta
        self._metric = metric
        self._restore_best = restore_best
        self._begin()

    def _begin(self) -> None:
        self.best = math.inf
        """The best value so far."""
        self.best_step = 0
        """After how many steps it was."""
        self.best_values: dict[str, Tensor] | None = None
        """The loss module's ``state_dict()`` then, if it is to be restored."""
        self._waited = 0

    def on_train_begin(self, run: TrainingRun) -> None:
        """Begin anew.

        :raises sgc.errors.SgcError: if parameters are to be restored and the loss is not one of sgc's.
        """
        self._begin()
        self.every = self._given or (_EVERY if run.epoch is None else None)
        if self._restore_best:
            _ = run.svi.loss_module

    def on_step_end(self, run: TrainingRun) -> None:
        """Look at the mean loss of the latest steps."""
        assert self.every is not None
        self._look(run, self.every)

    def on_epoch_end(self, run: TrainingRun) -> None:
        """Look at the mean loss of the epoch, unless that of a number of steps was asked for."""
        if self.every is None:
            self._look(run, None)

    def on_train_end(self, run: TrainingRun) -> None:
        """Put the best parameters back, if that was asked for."""
        if run.error is None and self.best_values is not None:
            loss_module = run.svi.loss_module
            loss_module.load_state_dict(
                {**loss_module.state_dict(), **self.best_values}
            )  # others came later: they stay

    def _look(self, run: TrainingRun, steps: int | None) -> None:
        if self._metric is not None:
            value = float(self._metric(run))
        else:
            value = run.epoch_loss() if steps is None else run.mean_loss(steps)
        if value < self.best - self._min_delta:
            self.best, self.best_step, self._waited = value, run.step, 0
            if self._restore_best:
                state = run.svi.loss_module.state_dict()
                self.best_values = {name: tensor.detach().clone() for name, tensor in state.items()}
            return
        self._waited += 1
        if self._waited >= self._patience:
            run.stop(f"no improvement on {self.best:.6g}, of step {self.best_step}")
