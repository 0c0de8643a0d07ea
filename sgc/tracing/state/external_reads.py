"""External reads of a program: clocks, iterators, files, environment and context variables.

A compiled program does not ask again. Clocks, sources of random bytes, iterators that outlive a run and files are
refused, with the line; variables are noted, for a guard to watch them.
"""

from __future__ import annotations

import builtins
import contextvars
import datetime
import io
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType
from typing import Any
from unittest import mock

from sgc.errors import CaptureError, SourceLine
from sgc.tracing.source import belongs_to_user, current_line, is_asked_by_program, is_installed

_CLOCKS = frozenset(
    getattr(time, name)
    for name in (
        *("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time"),
        *("process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns"),
        *("localtime", "gmtime", "ctime", "strftime"),
    )
    if hasattr(time, name)  # not each platform has all
)
_DATES = (datetime.date, datetime.datetime)
_OF_DATES = frozenset(("now", "utcnow", "today"))
_TIMED: CodeType = uuid.uuid1.__code__
_VARIABLE: CodeType = type(os.environ).__getitem__.__code__
_RANDOM_BYTES = os.urandom
_FROM_OUTSIDE = "read it outside of model and guide and pass what it gives as an argument, as a tensor"


class ExternalReads:
    """Notes the external reads of a run, and the user's ``codes`` that ran.

    :param earlier: of an earlier run of the same program, whose iterators must not be met again.
    """

    def __init__(self, earlier: ExternalReads | None = None) -> None:
        self.variables: dict[str, None] = {}
        self.contexts: dict[int, contextvars.ContextVar[Any]] = {}
        self.codes: set[CodeType] = set()
        self._earlier = earlier
        self._iterators: dict[int, Any] = {}
        self._files: list[tuple[Any, SourceLine | None]] = []
        self._refused: CaptureError | None = None
        self._thread = threading.get_ident()
        self._passed_over: dict[int, CodeType] = {}  # by identity: to hash code takes long

    def refuse(self) -> None:
        """Raise the error for a refused read, in case the program has caught it."""
        if self._refused is not None:
            raise self._refused

    @contextmanager
    def noted(self, *, profiled: bool) -> Iterator[None]:
        """Note external reads inside.

        :param profiled: also what only Python's profiler shows: clocks and variables.
        :raises CaptureError: with the line, for what is refused.
        """
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(builtins, "next", self._next(next)))
            opened = self._open(open)
            stack.enter_context(mock.patch.object(builtins, "open", opened))
            stack.enter_context(mock.patch.object(io, "open", opened))
            if profiled:
                stack.enter_context(_profiled(self._profile))
            try:
                yield
            except Exception:
                self.refuse()  # Pyro raises another of the same class, without the line
                raise
        self.refuse()

    def _next(self, taken: Callable[..., Any]) -> Callable[..., Any]:
        def next(iterator: Any, *default: Any) -> Any:
            if threading.get_ident() == self._thread and belongs_to_user(sys._getframe(1)):
                if self._earlier is not None and id(iterator) in self._earlier._iterators:
                    self._refuse(
                        f"takes the next item of a {type(iterator).__name__} that goes on from run to run",
                        "take it outside of model and guide and pass it as an argument",
                    )
                self._iterators[id(iterator)] = iterator  # kept, so that its identity stays its own
            return taken(iterator, *default)

        return next

    def _open(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if (
                self._earlier is not None  # what a first run reads and keeps is no file any more
                and threading.get_ident() == self._thread
                and ("r" in mode or "+" in mode)
                and is_asked_by_program(sys._getframe(1))
            ):
                self._refuse(f"reads the file {file}", _FROM_OUTSIDE)
            return opened(file, mode, *args, **kwargs)

        return open

    def _refuse(self, what: str, remedy: str, source: SourceLine | None = None) -> None:
        error = CaptureError(
            f"the program {what}, which a compiled program would not do again",
            source=source or current_line(),
            remedy=remedy,
        )
        self._refused = self._refused or error
        raise error

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        # Called for whatever Python calls: what libraries do among themselves must be passed over at once.
        if event == "call":
            code = frame.f_code
            if id(code) in self._passed_over:
                return
            if code is _VARIABLE:
                if is_asked_by_program(frame.f_back):
                    self.variables[frame.f_locals["key"]] = None
            elif code is _TIMED:
                if is_asked_by_program(frame.f_back):
                    self._refuse("makes a uuid", _FROM_OUTSIDE)
            elif belongs_to_user(frame):
                self.codes.add(code)
            else:
                self._pass_over(code)
        elif event == "c_call":
            if called is _RANDOM_BYTES:
                if is_asked_by_program(frame):
                    self._refuse(
                        "asks for random bytes of the system (os.urandom, uuid, secrets, a numpy generator that is "
                        "made without a seed, numpy.random.RandomState with one too)",
                        _FROM_OUTSIDE,
                    )
            elif id(frame.f_code) not in self._passed_over:
                self._look_at_call(frame, called)

    def _look_at_call(self, frame: FrameType, called: Any) -> None:
        if not belongs_to_user(frame):
            self._pass_over(frame.f_code)
        elif not is_installed(frame):
            if called in _CLOCKS:
                self._refuse(f"reads a clock (time.{called.__name__})", _FROM_OUTSIDE)
            holder = getattr(called, "__self__", None)
            if isinstance(holder, type) and issubclass(holder, _DATES) and called.__name__ in _OF_DATES:
                self._refuse(f"reads a clock ({holder.__name__}.{called.__name__})", _FROM_OUTSIDE)
            if isinstance(holder, contextvars.ContextVar) and called.__name__ == "get":
                self.contexts[id(holder)] = holder

    def _pass_over(self, code: CodeType) -> None:
        """Look at this code of a library no more, unless its name says nothing of whose it is."""
        if code is not _VARIABLE and code is not _TIMED and code.co_filename != "<string>":
            self._passed_over[id(code)] = code


@contextmanager
def _profiled(profile: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Run under this profile function, with any other profiler of the thread suspended."""
    other: Any = sys.getprofile()
    if hasattr(other, "disable"):  # cProfile's, which can only be put back by itself
        other.disable()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None if hasattr(other, "enable") else other)
        if hasattr(other, "enable"):
            other.enable()
