"""What a run of training shows of itself: a bar on a terminal or in a notebook, a few lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sgc.errors import ArgumentError

_EVERY = 0.1
"""Seconds between two looks at the losses, at least: on a GPU that waits for a step."""

_LINES = 10
"""How many lines are printed for a run of a known number of steps."""

Elbo = Callable[[], str]
"""Gives the running ELBO in words; empty if there is none yet."""


class Bar:
    """A bar with the running ELBO."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._shown = 0.0

    def show(self, taken: int, elbo: Elbo) -> None:
        """``taken`` more steps."""
        self._bar.update(taken)
        now = time.perf_counter()
        if now - self._shown >= _EVERY:
            self._shown = now
            self._bar.set_postfix_str(elbo(), refresh=False)


class Lines:
    """A line at each tenth of the run. Where its length is not known, at each doubling of the number of steps."""

    def __init__(self, total: int | None, unit: str = "step") -> None:
        self._total = total
        self._unit = unit
        self._taken = 0
        self._next = 1 if total is None else -(-total // _LINES)
        self._began = time.perf_counter()

    def show(self, taken: int, elbo: Elbo) -> None:
        """``taken`` more steps."""
        self._taken += taken
        if self._taken < self._next:
            return
        if self._total is None:
            self._next, of = 2 * self._taken, ""
        else:
            tenths = self._taken * _LINES // self._total + 1
            self._next, of = -(-tenths * self._total // _LINES), f"/{self._total}"
        seconds = time.perf_counter() - self._began
        parts = [f"{self._taken}{of} {self._unit}s", f"{seconds:.1f} s", elbo()]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


@contextmanager
def progress(total: int | None, unit: str = "step", *, wanted: bool = True) -> Iterator[Bar | Lines | None]:
    """Show the progress of a run, if that is wanted.

    A bar is drawn by returning to the start of its line, many times a second. In a file that would be as many copies.

    :param total: the number of steps, if it is known.
    :param unit: what a step is called.
    :raises sgc.errors.ArgumentError: if a bar is to be drawn and there is no tqdm.
    """
    if not wanted:
        yield None
    elif not (sys.stderr.isatty() or _in_a_notebook()):
        yield Lines(total, unit)
    else:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ArgumentError(
                "a progress bar needs tqdm", remedy="pip install tqdm, or progress_bar=False"
            ) from error
        with tqdm(total=total, unit=unit) as bar:
            yield Bar(bar)


def _in_a_notebook() -> bool:
    """Whether this process draws widgets, whatever its error output is: tqdm asks the same."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
