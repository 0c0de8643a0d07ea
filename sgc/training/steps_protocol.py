"""What takes the steps of a run: compiled ones (``stepper.py``), or Pyro's own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from sgc.errors import NanLossError
from sgc.guards.base import Call
from sgc.runtime.validity import Trial
from sgc.training.bound_step import Step


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
        """How many data a loss is of, where subsampling plates say so, and say the same in all that was captured."""
        ...

    def runs_uncompiled(self) -> bool:
        """Whether the latest step has run operator by operator, for as long as another process compiles it."""
        ...
