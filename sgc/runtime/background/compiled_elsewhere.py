"""Programs that another process compiles while they run operator by operator, and what is told of compilations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sgc.config import Options
from sgc.emit.backends.protocol import Backend, BackgroundBackend
from sgc.emit.fx.values_as_data import NotPlain
from sgc.emit.inductor.background.compile_request import Answer, CompileRequest
from sgc.emit.inductor.background.compiler_process import LONG, PendingCompilation, compiler, cores, hindrance, log
from sgc.native import library
from sgc.runtime.background.postponed import Postponed, note_begun, note_seconds
from sgc.runtime.specializing.specialization import Specialization

_VARIABLE = "SGC_WAIT"
"""Where ``wait`` is not given, it is true if this is set to anything but 0."""


def background_backend(
    specialization: Specialization, backend: Backend, tensors: Sequence[Tensor]
) -> BackgroundBackend | None:
    """The backend whose programs run at once and are compiled meanwhile; None where the compiler is to be waited for.

    :param tensors: those of a call.
    """
    if not isinstance(backend, BackgroundBackend) or waits(specialization.options):
        return None
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    return backend.in_background()


def waits(options: Options) -> bool:
    """Whether the options say that the compiler is waited for, on whatever device."""
    if options.wait is not None:
        return options.wait or hindrance() is not None
    asked = os.environ.get(_VARIABLE, "0") not in ("", "0")
    return asked or torch.are_deterministic_algorithms_enabled() or cores() < 2 or hindrance() is not None


def begun(
    specialization: Specialization, what: str, make_request: Callable[[], CompileRequest | None]
) -> PendingCompilation | Postponed | None:
    """Have another process compile; None if it cannot, after a line in the log that says why.

    What has sizes that differ from call to call is nothing that another process can be told: that is put off.
    """
    about = _about(specialization, what)
    if specialization.capture.sizes is not None:
        log.info("%s runs operator by operator until it pays to compile it in this process", about)
        return Postponed()
    request = make_request()
    if request is None:
        log.info("%s is compiled in this process: inputs that it writes share memory with others", about)
        return None
    try:
        asked = PendingCompilation(about, compiler().submit(request.as_text()))
    except NotPlain as reason:
        log.info("%s is compiled in this process: it has %s", about, reason)
        return None
    except OSError as error:
        log.warning("%s is compiled in this process: no other can be started (%s)", about, error)
        return None
    if not asked.is_done():
        note_begun(asked)
        log.info("compiling %s in the background", about)
        if library.is_there():
            specialization.watch_natively()
    return asked


@contextmanager
def told(specialization: Specialization, what: str) -> Iterator[None]:
    """Tell the log that a compilation begins which is waited for, and how long it took."""
    about, began = _about(specialization, what), time.perf_counter()
    log.info("compiling %s", about)
    yield
    seconds = time.perf_counter() - began
    note_seconds(seconds)
    if seconds > LONG:
        log.info("compiled %s, in %.1f s", about, seconds)


def _about(specialization: Specialization, what: str) -> str:
    return f"{what} ({specialization.reason})"


def taken(asked: object) -> Answer | None:
    """What another process has compiled; None where it is to be compiled here."""
    if not isinstance(asked, PendingCompilation):
        return None
    answer = asked.taken()
    note_seconds(asked.seconds)
    return answer


@contextmanager
def usable(answer: Answer) -> Iterator[None]:
    """Within, what another process has compiled is loaded; if that fails, a line in the log says why."""
    try:
        yield
    except (OSError, ImportError) as error:
        log.warning("what another process has compiled cannot be loaded, and is compiled here: %s", error)
