"""What is called during a run of training, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sgc.errors import ArgumentError

if TYPE_CHECKING:
    from sgc.guards.base import Call
    from sgc.training.loop import Loop
    from sgc.training.losses import RunResult


class TrainingRun:
    """A run of training in progress, as callbacks see it.

    :param svi: the :class:`sgc.SVI` that takes the steps.
    """

    def __init__(self, svi: Any, loop: Loop) -> None:
        self.svi = svi
        self._loop = loop
        self.error: BaseException | None = None
        """What has ended the run, in ``on_train_end``: ``KeyboardInterrupt`` for Ctrl-C; None if nothing has."""

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return self._loop.taken

    @property
    def total(self) -> int | None:
        """How many steps there will be, if that is known."""
        return self._loop.total

    @property
    def epoch(self) -> int | None:
        """The number of the epoch, counted from 1; 0 before the first; None in a run of a number of steps."""
        return self._loop.epoch

    @property
    def call(self) -> Call | None:
        """The arguments of the latest step: ``call.args`` and ``call.kwargs``; None before the first."""
        return self._loop.latest

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """All callbacks of the run, the monitor first."""
        return tuple(self._loop.callbacks)

    @property
    def result(self) -> RunResult:
        """The losses so far."""
        return self._loop.result()

    def mean_loss(self, steps: int) -> float:
        """The mean loss (minus the ELBO, in nats) of the latest ``steps`` steps; NaN if there was none."""
        losses = self._loop.latest_losses(steps)
        return sum(losses) / len(losses) if losses else float("nan")

    def epoch_loss(self) -> float:
        """The mean loss of the steps of the present epoch so far."""
        return self.mean_loss(self._loop.steps_in_epoch)

    def stop(self, reason: str = "a callback has stopped it") -> None:
        """End the run after this step. The result says the reason."""
        self._loop.stopped = reason


class Callback:
    """Derive from it to watch a run of training: ``svi.run(..., callbacks=[...])``. No method need be overridden.

    ``every`` says after how many steps each ``on_step_end`` follows; None: never. Between two of them steps are taken
    many in one call, as without callbacks. A callback may read all it likes. If it draws random numbers
    (``svi.evaluate_loss``), the steps after it draw others.
    """

    every: int | None = 1

    def on_train_begin(self, run: TrainingRun) -> None:
        """Before the first step."""

    def on_step_end(self, run: TrainingRun) -> None:
        """After each step whose number ``every`` divides."""

    def on_epoch_end(self, run: TrainingRun) -> None:
        """After the last step of each epoch, and its ``on_step_end``."""

    def on_train_end(self, run: TrainingRun) -> None:
        """After the last step, however the run has ended: ``run.error`` says so."""


class _Function(Callback):
    """A function, called after each step."""

    def __init__(self, function: Callable[[TrainingRun], Any]) -> None:
        self.function = function

    def on_step_end(self, run: TrainingRun) -> None:
        self.function(run)


def as_callback(given: Any) -> Callback:
    """A callback, or a function as one.

    :raises sgc.errors.ArgumentError: if it is neither.
    """
    if isinstance(given, Callback):
        return given
    if isinstance(given, type) or not callable(given):
        what = f"the class {given.__qualname__}" if isinstance(given, type) else f"a {type(given).__name__}"
        is_class = isinstance(given, type) and issubclass(given, Callback)
        raise ArgumentError(
            f"a callback is a function or an sgc.Callback, not {what}",
            remedy=f"make one: {given.__name__}()" if is_class else "derive its class from sgc.Callback",
        )
    return _Function(given)


def shown(callback: Callback) -> str:
    """What a callback is called in texts."""
    what: Any = callback.function if isinstance(callback, _Function) else type(callback)
    return str(getattr(what, "__qualname__", what))


def checked_every(every: Any) -> None:
    """Refuse a number of steps that is none.

    :raises sgc.errors.ArgumentError: if it is no whole number above 0.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ArgumentError(f"every is a number of steps, 1 or more, not {every!r}")
