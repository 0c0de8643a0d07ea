"""A process that holds one system, and works only when asked; and the parent's side of it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.memory import MIB, peak, resident

if TYPE_CHECKING:
    from benchmarks.systems.base import System


class Job(NamedTuple):
    """What a process is to hold, and where."""

    system: str
    family: str
    sizes: dict[str, int]
    particles: int = 1
    device: str = "cpu"
    threads: int = 1
    cache: str = ""
    """Where Inductor keeps what it compiled."""


Answering = Callable[[Job], Callable[[str, Any], Any]]


class First(NamedTuple):
    """Building, and the first two steps (or the first call of many).

    In seconds, and the most memory held until then, in MiB above what the imports took.
    """

    seconds: float
    memory: float


class Turn(NamedTuple):
    """One turn: seconds a step, and the losses seen, by number, mean and variance."""

    step: float
    count: int
    mean: float
    variance: float


class Climb(NamedTuple):
    """From before anything is made: when so many steps had been taken, in seconds."""

    reached: dict[int, float]
    pace: float
    """Seconds a step in the last quarter of the steps."""

    def until(self, count: int) -> tuple[float, bool]:
        """The seconds until this many steps, and whether they were measured: else the last pace goes on."""
        if count in self.reached:
            return self.reached[count], True
        last = max(self.reached)
        return self.reached[last] + (count - last) * self.pace, False


@dataclass
class Failed(Exception):
    """Why a system does not work."""

    reason: str


class Worker:
    """The parent's side.

    :param job: what the process holds.
    :param cores: on which it runs.
    :param patience: how long an answer may take, in seconds.
    :param answer: what the process answers, where it is not a system of the table of steps: a function of a module, of
        the job, that gives a function of what is asked and its argument.
    """

    def __init__(self, job: Job, cores: set[int], patience: float, answer: Answering | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._patience = patience
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, job, cores, answer or _of_system), daemon=True)
        self._process.start()
        other.close()

    def library(self) -> None:
        """Compile sgc's own library, where there is a C++ compiler.

        :raises Failed: if that does not work.
        """
        self.ask("library", None)

    def first(self) -> First:
        """Make everything, and take the first steps.

        :raises Failed: if it does not work, or takes longer than the worker's patience.
        """
        return self.ask("first", None)

    def climb(self, counts: Sequence[int], seconds: float) -> Climb:
        """Make everything, and take the largest of these numbers of steps, or as many as this time allows.

        :raises Failed: if it does not work, or takes longer than the worker's patience.
        """
        return self.ask("climb", (counts, seconds))

    def turn(self, seconds: float, cores: set[int]) -> Turn:
        """Take steps for this long, on these cores.

        :raises Failed: if it does not work.
        """
        return self.ask("turn", (seconds, cores))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, what: str, argument: Any) -> Any:
        """What the process answers.

        :raises Failed: if it raises an error, or takes longer than the worker's patience.
        """
        try:
            self._connection.send((what, argument))
            if not self._connection.poll(self._patience):
                self._process.kill()
                raise Failed(f"took longer than {self._patience:.0f} s")
            answer = self._connection.recv()
        except (EOFError, BrokenPipeError):
            self._process.join(timeout=2)
            raise Failed(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(answer, Failed):
            raise answer
        return answer


def pin(cores: set[int]) -> None:
    """Keep every thread of this process on these cores, where the system can do that (Linux)."""
    if not hasattr(os, "sched_setaffinity") or not cores:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue  # it ended meanwhile


def all_cores() -> list[int]:
    """The cores this process may use; empty where that cannot be asked."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def environment(job: Job) -> dict[str, str]:
    """What keeps XLA, OpenMP and Inductor to the same number of threads, and Inductor to its own cache."""
    one = "false" if job.threads == 1 else "true"
    return {
        "OMP_NUM_THREADS": str(job.threads),
        "MKL_NUM_THREADS": str(job.threads),
        "OPENBLAS_NUM_THREADS": str(job.threads),
        "TORCHINDUCTOR_COMPILE_THREADS": str(job.threads),
        "TORCHINDUCTOR_CACHE_DIR": job.cache,
        "TRITON_CACHE_DIR": os.path.join(job.cache, "triton"),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={one} intra_op_parallelism_threads={job.threads}",
        "JAX_PLATFORMS": job.device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes of a workload share one GPU
    }


def _serve(connection: Connection, job: Job, cores: set[int], answering: Answering) -> None:
    """The worker's side. Libraries are imported only now, where cores and threads are settled."""
    pin(cores)
    os.environ |= environment(job)
    try:
        answer = answering(job)
        while True:
            connection.send(answer(*connection.recv()))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        reason = " ".join(str(error).split())
        connection.send(Failed(f"{type(error).__name__}: {reason[:200]}"))


def _of_system(job: Job) -> Callable[[str, Any], Any]:
    """The answers of a process that holds a system of the table of steps."""
    system = None

    def answer(what: str, argument: Any) -> Any:
        nonlocal system
        if what == "library":
            from sgc.native import library

            if library.is_available():
                library.library()
            return None
        if what == "first":
            system = _made(job)
            imported = resident()
            seconds = _timed(lambda: _first(system), 1, system.wait)[0]
            held = system.device_peak()
            return First(seconds, (peak() - imported if held is None else held) / MIB)
        if what == "climb":
            return _climb(_made(job), *argument)
        pin(argument[1])
        return _turn(system, argument[0])

    return answer


def _made(job: Job) -> System:
    """The system, before it has prepared anything."""
    import pyro
    import torch

    from benchmarks.systems import system_class
    from benchmarks.workloads import make

    torch.set_num_threads(job.threads)
    pyro.set_rng_seed(0)
    return system_class(job.system)(make(job.family, job.sizes), job.particles, job.device)


def _climb(system: System, counts: Sequence[int], seconds: float) -> Climb:
    start = time.perf_counter()
    system.prepare()
    times: list[float] = []
    # The first two steps, in which there may be compilers, take as long as they take.
    while len(times) < max(counts) and not (
        len(times) > _MADE_WITHIN and times[-1] - times[_MADE_WITHIN - 1] > seconds
    ):
        system.wait(system.advance())
        times.append(time.perf_counter() - start)
    reached = {count: times[count - 1] for count in (*counts, len(times)) if count <= len(times)}
    going = times[_MADE_WITHIN - 1 :]
    late = going[len(going) * 3 // 4 :] if len(going) > 8 else going
    return Climb(reached, (late[-1] - late[0]) / (len(late) - 1))


_MADE_WITHIN = 2
"""After so many steps everything has been made that is waited for: an optimizer may make its state in the first."""


def _first(system: Any) -> Any:
    """Until every later step is like the next: an optimizer may make its state in the first, and be compiled after."""
    system.prepare()
    return [system.advance() for _ in range(2 if system.steps_a_call == 1 else 1)][-1]


def _turn(system: Any, seconds: float) -> Turn:
    """Steps that fill the time, in batches of about a twentieth of it."""
    batch, count, taken = 0, 0, 0.0
    losses: list[np.ndarray] = []
    while taken < seconds:
        lasted, results = _timed(system.advance, max(1, batch), system.wait)
        losses.append(system.losses(results))
        if batch:  # the first call only warms again, after the others' turns
            taken += lasted
            count += batch
        batch = max(1, int(seconds / 20 * len(results) / lasted))
    seen = np.concatenate(losses)
    return Turn(taken / count / system.steps_a_call, len(seen), float(seen.mean()), float(seen.var(ddof=1)))


def _timed(call: Callable[[], Any], times: int, wait: Callable[[Any], None]) -> tuple[float, list[Any]]:
    start = time.perf_counter()
    results = [call() for _ in range(times)]
    wait(results[-1])
    return time.perf_counter() - start, results
