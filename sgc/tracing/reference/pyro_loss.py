"""What is common to eager Pyro's losses, and which one an objective has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from pyro.infer.elbo import ELBO
from pyro.poutine import Trace

from sgc.tracing.site_options.asked_estimators import AskedEstimators
from sgc.tracing.site_options.estimator_option import EstimatorOption


class PyroLoss(ELBO):
    """One of Pyro's losses, with the estimators that sites ask for; mixed into Pyro's class, before it.

    :param as_asked: leave these out instead, so that the numbers are Pyro's own.
    :param option: says what they ask for beside what stands in the guide.
    """

    def __init__(self, *, as_asked: bool = True, option: EstimatorOption | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.as_asked = as_asked
        self.option = option
        self.enumerates = False
        """Whether it is known that a site asks for several values; else the first run finds out, and starts anew."""
        self.starting_anew: Callable[[], None] = _do_nothing
        """Called where model and guide have run to find something out, before the runs that count."""

    def as_it_asks(self, model: Any, guide: Any) -> tuple[Any, Any]:
        """Model and guide, which ask for what the option says, unless they are to be Pyro's own."""
        return self.option.of_both(model, guide) if self.option is not None and self.as_asked else (model, guide)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        pyros: Any = super()
        with AskedEstimators() if self.as_asked else nullcontext():
            traces: tuple[Trace, Trace] = pyros._get_trace(*self.as_it_asks(model, guide), args, kwargs)
        return traces

    def _guess_max_plate_nesting(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        pyros: Any = super()
        pyros._guess_max_plate_nesting(model, guide, args, kwargs)
        self.starting_anew()

    def finished(self, traces: tuple[Trace, Trace]) -> tuple[Trace, Trace]:
        """The traces of one run, once every density is there, as :meth:`value_and_surrogate` takes them."""
        return traces

    def value_and_surrogate(self, traces: tuple[Trace, Trace]) -> tuple[Any, Any]:
        """What one run of model and guide adds: to the objective, and to the surrogate loss; tensors or numbers."""
        raise NotImplementedError

    def combined(self, runs: Iterator[tuple[Trace, Trace]]) -> tuple[Any, Any]:
        """The objective, which is to be maximised, and the surrogate loss, of the traces of all runs."""
        value: Any = 0.0
        surrogate: Any = 0.0
        for traces in runs:
            own_value, own_surrogate = self.value_and_surrogate(traces)
            value, surrogate = value + own_value, surrogate + own_surrogate
        return value / self.num_particles, surrogate / self.num_particles


def _do_nothing() -> None:
    pass
