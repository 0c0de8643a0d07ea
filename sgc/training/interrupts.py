"""Ctrl-C in a run of training, which takes effect between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def postponed_interrupt() -> Iterator[list[int]]:
    """Note Ctrl-C instead of raising at once, in the middle of a step perhaps; it is raised after the step.

    Only Python's own handler is replaced. A handler of the user's decides itself; where the signal is ignored, as in a
    process that a shell runs in the background, it stays so. In another thread than the main one nothing is done, since
    Python gives signals to the main thread.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt  # asked for twice: the step may be stuck
        noted.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if signal.getsignal(signal.SIGINT) is note:  # else somebody has set another one during the run
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt
