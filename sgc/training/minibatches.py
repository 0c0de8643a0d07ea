"""The minibatches of a run: each as the arguments of a step, and which of them a step is about."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from sgc.guards.base import Call


class Minibatches:
    """Goes through some minibatches ``epochs`` times.

    The parts of a tuple or list are a step's arguments, those of a mapping its keyword arguments, and anything else is
    its one argument; ``args`` and ``kwargs`` follow them.
    """

    def __init__(self, batches: Iterable[Any], epochs: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._batches = batches
        self._epochs = epochs
        self._args = args
        self._kwargs = kwargs
        self._count = 0
        self._began: list[int] = []  # the number of minibatches before each epoch so far

    def __iter__(self) -> Iterator[Iterator[Call]]:
        """The epochs, each the calls of its minibatches; the next one begins when the one before was gone through."""
        for _ in range(self._epochs):
            self._began.append(self._count)
            yield self._epoch()

    def _epoch(self) -> Iterator[Call]:
        for batch in self._batches:
            self._count += 1
            yield self._call(batch)

    def _call(self, batch: Any) -> Call:
        if isinstance(batch, Mapping):
            return Call(self._args, {**batch, **self._kwargs})
        parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        return Call((*parts, *self._args), self._kwargs)

    def place(self, step: int) -> str:
        """Which minibatch of which epoch the step of this number is about, all counted from 1; its index is from 0."""
        epoch = bisect.bisect_left(self._began, step)
        within = step - self._began[epoch - 1]
        return f"minibatch {within} of epoch {epoch}, index {within - 1}"

    @property
    def epoch(self) -> int:
        """The number of the present epoch, counted from 1; 0 before the first."""
        return len(self._began)

    @property
    def before_epoch(self) -> int:
        """How many minibatches there were before the present epoch."""
        return self._began[-1] if self._began else 0

    @property
    def total(self) -> int | None:
        """How many steps there will be, if that is known."""
        length = self._length
        return None if length is None else length * self._epochs

    @property
    def epoch_length(self) -> int | None:
        """How many there are in an epoch, once that is known."""
        if len(self._began) > 1:
            return self._began[-1] - self._began[-2]
        return self._length

    @property
    def _length(self) -> int | None:
        if not isinstance(self._batches, Sized):
            return None
        try:
            return len(self._batches)
        except TypeError:  # a DataLoader of an iterable dataset has a ``__len__`` that raises
            return None
