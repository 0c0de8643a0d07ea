"""The process that compiles for this one, and what was asked of it.

It is started when something is first asked of it, with the same interpreter and import path and nothing of the user's
program, so that a script needs no ``if __name__ == "__main__"``. It has its input from this process, and so ends with
it, however that ends; Ctrl-C on a terminal is not for it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sgc.emit.inductor.background.compile_request import Answer, answer_path

log = logging.getLogger("sgc")
"""Tells when something is compiled, why, and how long it took."""

LONG = 1.0
"""Seconds from which it is told how long a compilation took."""

_WORKER = "sgc.emit.inductor.background.compile_worker"
_LONGEST = 2000
"""Characters of what a process that has failed has written."""


class Awaited(Protocol):
    """Something that another process compiles."""

    def is_done(self) -> bool:
        """Whether it has ended, in either way; asked at each step."""
        ...

    @property
    def answer(self) -> Answer | None:
        """What came of it, once it has ended; None if that failed."""
        ...

    @property
    def failure(self) -> str:
        """Why it failed."""
        ...


class Compiler(Protocol):
    """What compiles in the background."""

    def submit(self, text: str) -> Awaited:
        """Have a request compiled (:class:`~sgc.emit.inductor.background.compile_request.CompileRequest`, as text).

        :raises OSError: if no process can be started.
        """
        ...


@dataclass
class _Known:
    """An answer that is there already."""

    answer: Answer | None
    failure: str = ""

    def is_done(self) -> bool:
        return True


class _Said:
    """What a process writes: a file without a name, which is closed with the last who may read it."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)

    def text(self) -> str:
        """The end of it."""
        self.file.seek(0)
        return _end_of(self.file.read().decode(errors="replace"))

    def __del__(self) -> None:
        self.file.close()


@dataclass
class _Asked:
    """A request, and the files in which its answer, or its failure, will be."""

    process: subprocess.Popen[str]
    said: _Said
    place: Path
    failed: Path
    answer: Answer | None = None
    failure: str = ""
    _owner: int = field(default_factory=os.getpid)

    def is_done(self) -> bool:
        if self.answer is not None or self.failure:
            return True
        if os.getpid() != self._owner:
            self.failure = "this process is a fork of the one that has asked"
            return True
        code = self.process.poll()  # before the files: what it has written last is there then
        if self.place.exists():
            self.answer = Answer.read(self.place)
            self.failure = "" if self.answer is not None else f"{self.place} cannot be used"
        elif self.failed.exists():
            self.failure = _end_of(self.failed.read_text())
        elif code is not None:
            self.failure = f"the process has ended, with status {code}: {self.said.text() or 'it has said nothing'}"
        return self.answer is not None or bool(self.failure)


def _end_of(text: str) -> str:
    return text.strip()[-_LONGEST:]


class CompilerProcess:
    """One process for all that this one asks for; requests wait in its input, and are answered one after another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._said: _Said | None = None
        self._folder: Path | None = None
        self._asked = 0

    def submit(self, text: str) -> Awaited:
        """Have a request compiled, unless it has been before; the process is started if there is none."""
        place = answer_path(text)
        # Of torch: what is kept is not to be used.
        anew = os.environ.get("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "0") != "0"
        known = None if anew else Answer.read(place)
        if known is not None:
            return _Known(known)
        place.unlink(missing_ok=True)
        process, said, folder = self._started()
        self._asked += 1
        failed = folder / f"{self._asked}.failed"
        task = {"request": text, "answer": str(place), "failure": str(failed)}
        path = folder / f"{self._asked}.json"
        path.write_text(json.dumps(task))
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: whoever asks will be told
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        return _Asked(process, said, place, failed)

    @property
    def number(self) -> int | None:
        """Of the process, as the system counts them, if it is there."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def end(self) -> None:
        """End the process, with all that it has started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Let go of the process as it is: in a fork, which must not hold the input of a process that is not its own."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        if self._process is not None and self._owner != os.getpid():
            self._process.returncode = 0  # it is no child of this process, which would be warned that it runs
        self._process = self._said = None
        if self._folder is not None and self._owner == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _started(self) -> tuple[subprocess.Popen[str], _Said, Path]:
        if self._process is None or self._process.poll() is not None:
            self.forget()
            self._owner = os.getpid()
            self._folder = Path(tempfile.mkdtemp(prefix="sgc_"))
            self._said = _Said()
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=self._said.file,
                stderr=self._said.file,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"},
                text=True,
                start_new_session=True,
            )
        assert self._said is not None and self._folder is not None
        return self._process, self._said, self._folder


@dataclass
class PendingCompilation:
    """A program that another process compiles."""

    about: str
    awaited: Awaited
    seconds: float = 0.0
    """How long it took, once it was taken."""
    _began: float = field(default_factory=time.perf_counter)

    def is_done(self) -> bool:
        """Whether the other process is done with it, in either way."""
        return self.awaited.is_done()

    def taken(self) -> Answer | None:
        """What the other process has compiled; None if it could not, after a line in the log that says why."""
        answer, self.seconds = self.awaited.answer, time.perf_counter() - self._began
        if answer is None:
            log.warning("compiling %s in another process has failed: %s", self.about, self.awaited.failure)
        elif self.seconds > LONG:
            log.info("compiled %s in the background, in %.1f s", self.about, self.seconds)
        return answer


_process = CompilerProcess()
atexit.register(_process.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forget)

_compiler: list[Compiler] = [_process]


def compiler() -> Compiler:
    """What compiles in the background."""
    return _compiler[-1]


@contextmanager
def compiled_by(other: Compiler) -> Iterator[None]:
    """Within, another one compiles: for tests, which say at which step what they have asked for is there."""
    _compiler.append(other)
    try:
        yield
    finally:
        _compiler.remove(other)


def hindrance() -> str | None:
    """Why no other process can compile for this one; None if one can."""
    if sys.platform == "win32" or not hasattr(os, "killpg"):
        return "processes are not watched on this system"
    if not sys.executable:
        return "Python does not know its own interpreter"
    # As torch looks for it, without importing Inductor; whoever waits then is told what to install.
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return None if shutil.which(os.environ.get("CXX", usual)) else "there is no C++ compiler"


def cores() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
