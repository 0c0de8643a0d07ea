"""Records the ELBO, the gradient's norm and its variance during a run of training."""

from __future__ import annotations

import math
from typing import Any

from sgc.errors import ArgumentError, SgcError, StandInWarning
from sgc.guards.base import Call
from sgc.runtime.inspection.drawn_gradient import beside_training, drawn_gradient
from sgc.runtime.loss_module import LossModule
from sgc.runtime.variance.sampling import measure
from sgc.tracing.source import warn
from sgc.training.callbacks.callback import Callback, TrainingRun, checked_every
from sgc.training.callbacks.monitored import Monitored, Record


class Monitor(Callback):
    """Records at every ``every`` steps, without changing the training: ``svi.run(..., monitor=sgc.Monitor(100))``.

    The ELBO is minus the mean loss of the steps since the record before. The norms are those of one draw of the
    gradient at the present parameters, on the arguments of the step: the draw that the next step on these would make.
    The emitted module runs for it once, operator by operator, on copies; the random state is put back.

    :param every: after how many steps each record follows.
    :param gradient_norm: whether to draw a gradient for its norms.
    :param variance_samples: how many gradients are drawn for the variance and each site's share of it
        (:meth:`sgc.LossModule.gradient_variance`); 0: none.
    :raises sgc.errors.ArgumentError: if ``every`` is no number of steps, or a variance is asked of one sample.
    """

    def __init__(self, every: int = 100, *, gradient_norm: bool = True, variance_samples: int = 0) -> None:
        checked_every(every)
        if variance_samples == 1 or variance_samples < 0:
            raise ArgumentError(f"a variance needs at least 2 samples, not {variance_samples}")
        self.every = every
        self._gradient_norm = gradient_norm
        self._variance_samples = variance_samples
        self._records: list[Record] = []
        self._is_told = False

    @property
    def monitored(self) -> Monitored:
        """What was recorded in the latest run."""
        return Monitored(tuple(self._records))

    def on_train_begin(self, run: TrainingRun) -> None:
        """Begin anew.

        :raises sgc.errors.SgcError: if gradients are asked for and the loss is not one of sgc's.
        """
        self._records, self._is_told = [], False
        if self._gradient_norm or self._variance_samples:
            _ = run.svi.loss_module

    def on_step_end(self, run: TrainingRun) -> None:
        """Record."""
        since = run.step - (self._records[-1].step if self._records else 0)
        self._records.append(Record(run.step, -run.mean_loss(since), *self._of_gradient(run)))

    def _of_gradient(self, run: TrainingRun) -> tuple[dict[str, float], float, dict[str, float]]:
        norms: dict[str, float] = {}
        variance, shares = math.nan, dict[str, float]()
        if not (self._gradient_norm or self._variance_samples) or run.call is None:
            return norms, variance, shares
        loss_module: LossModule = run.svi.loss_module
        try:
            if self._gradient_norm:
                norms = _norms(loss_module, run.call)
            if self._variance_samples:
                with beside_training(loss_module, run.call) as made:
                    measured = measure(*made, self._variance_samples, alternatives=False)
                variance = measured.total
                shares = {row.site: measured.share(row.site) for row in measured.sites}
        except SgcError as error:
            if not self._is_told:
                self._is_told = True
                warn(f"gradients of some steps are not recorded: {error.problem}", StandInWarning)
        return norms, variance, shares


def as_monitor(given: Any) -> Monitor | None:
    """A monitor from what ``svi.run`` is given: one, a number of steps, or None.

    :raises sgc.errors.ArgumentError: if it is something else.
    """
    if given is None or isinstance(given, Monitor):
        return given
    if isinstance(given, bool) or not isinstance(given, int):
        raise ArgumentError(
            f"monitor is a number of steps or an sgc.Monitor, not a {type(given).__name__}",
            remedy="say after how many steps each record is made: monitor=100",
        )
    return Monitor(given)


def _norms(loss_module: LossModule, call: Call) -> dict[str, float]:
    with beside_training(loss_module, call) as made:
        return {name: float(part.norm()) for name, part in drawn_gradient(*made).items()}
