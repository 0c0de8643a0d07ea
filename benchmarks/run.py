"""Trains every workload in every system, times the steps, and writes the table.

    python -m benchmarks                       # all; writes benchmarks/RESULTS.md
    python -m benchmarks --workload vae --output vae.md
    python -m benchmarks --quick               # a smoke run: one workload, one short round, prints only

Each system runs in a process of its own, so that none shares Pyro's parameter store, thread pool or compiled code with
another. The processes take turns: every round lets each take as many steps as fill a fixed time, alone. The median over
the rounds is reported, and the range. The mean loss is shown because a fast step that computes something else is none.
"""

from __future__ import annotations

import argparse
import atexit
import os
import queue
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tqdm import tqdm

from benchmarks.catalogue import WORKLOADS, Entry
from benchmarks.outcome import Outcome, Outcomes
from benchmarks.report import aims, heading, table
from benchmarks.systems import CACHED, STEP, TABLE
from benchmarks.worker import Failed, Job, Worker, all_cores

_RESULTS = Path(__file__).with_name("RESULTS.md")


class Bench:
    """One workload: its processes, made side by side and timed in turns.

    :param entry: the workload.
    :param systems: which systems.
    :param args: the command line's.
    :param particles: how many particles a step averages over.
    """

    def __init__(self, entry: Entry, systems: Iterable[str], args: argparse.Namespace, particles: int = 1) -> None:
        self._entry = entry
        self._args = args
        self._particles = particles
        self._workers: dict[str, Worker] = {}
        self.outcomes: Outcomes = {system: Outcome() for system in systems}

    def measure(self) -> Outcomes:
        """Starts, cold and warm; then the rounds."""
        rounds = len(self.outcomes) * self._args.rounds
        try:
            with tqdm(total=len(self.outcomes) + rounds, desc=self._entry.title) as bar:
                self._prepare(bar)
                for _ in range(self._args.rounds):
                    for system, outcome in self.outcomes.items():
                        self._turn(system, outcome)
                        bar.update()
        finally:
            for worker in self._workers.values():
                worker.close()
        return self.outcomes

    def _prepare(self, bar: tqdm) -> None:
        """As many at a time as there are cores for, each on cores of its own."""
        if not CACHED.isdisjoint(self.outcomes):
            made_once(self._args.device, self._args.threads)  # here, where nothing is timed yet
        places: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for place in _places(self._args.threads):
            places.put(place)

        def prepare(system: str) -> None:
            place = places.get()
            try:
                self._first(system, place)
            finally:
                places.put(place)
                bar.update()

        with ThreadPoolExecutor(max_workers=places.qsize()) as pool:
            list(pool.map(prepare, self.outcomes))

    def _first(self, system: str, place: set[int]) -> None:
        outcome, args = self.outcomes[system], self._args
        made = new_cache()
        if system in CACHED:
            shutil.copytree(made_once(args.device, args.threads), made, dirs_exist_ok=True)
        job = Job(system, self._entry.family, self._entry.sizes, self._particles, args.device, args.threads, made)
        try:
            worker = self._workers[system] = Worker(job, place, args.patience)
            outcome.cold = worker.first()
            if system in CACHED and args.warm:
                worker.close()
                worker = self._workers[system] = Worker(job, place, args.patience)
                outcome.warm = worker.first()
        except Failed as failed:
            outcome.failure = failed.reason
        finally:
            shutil.rmtree(made, ignore_errors=True)  # loaded by now

    def _turn(self, system: str, outcome: Outcome) -> None:
        if outcome.failure is None:
            try:
                outcome.turns.append(self._workers[system].turn(self._args.seconds, _places(self._args.threads)[-1]))
            except Failed as failed:
                outcome.failure = failed.reason


@cache
def made_once(device: str, threads: int) -> str:
    """A cache with what is compiled once on a machine: sgc's library. Torch keeps its precompiled headers elsewhere.

    Where that does not work, the systems that need it say why.
    """
    library = new_cache()
    atexit.register(shutil.rmtree, library, ignore_errors=True)
    _work(Worker.library, WORKLOADS["beta_bernoulli"], device, threads, library)
    for name in ("beta_bernoulli", "vae"):  # small programs and others have headers of their own
        made = new_cache()
        _work(Worker.first, WORKLOADS[name], device, threads, made)
        shutil.rmtree(made, ignore_errors=True)
    return library


def _work(what: Callable[[Worker], object], entry: Entry, device: str, threads: int, made: str) -> None:
    worker = Worker(Job(STEP, entry.family, entry.sizes, 1, device, threads, made), set(all_cores()), 600.0)
    try:
        what(worker)
    except Failed as failed:
        print(f"not compiled beforehand: {failed.reason}")
    finally:
        worker.close()


def new_cache() -> str:
    return tempfile.mkdtemp(prefix="sgc-benchmark-")


def _places(threads: int) -> list[set[int]]:
    """Disjoint sets of as many cores as a process has threads; one empty set where cores cannot be chosen."""
    cores = all_cores()
    places = [set(cores[i : i + threads]) for i in range(0, len(cores) - threads + 1, threads)]
    return places or [set(cores)]


def options() -> argparse.ArgumentParser:
    """What the table and the plots have in common."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", choices=TABLE, action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="how long a system's turn is")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--patience", type=float, default=240.0, help="how long a start may take, in seconds")
    parser.add_argument("--warm", action=argparse.BooleanOptionalAction, default=True, help="time warm starts too")
    return parser


def warn_of_load() -> float:
    """The load average, with a line where it will disturb the timing."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    if load > 0.5:
        print(f"the load average is {load:.2f}: other work runs on this machine and will disturb the timing")
    return load


def main() -> None:
    """Measure, print and write."""
    parser = options()
    parser.description = (__doc__ or "").partition("\n")[0]
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one workload, one short round")
    parser.add_argument("--output", type=Path, help="where the table is written; RESULTS.md unless --quick")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.warm = 1, 0.05, False
    load = warn_of_load()

    workloads = args.workload or (["beta_bernoulli"] if args.quick else list(WORKLOADS))
    output = args.output or (None if args.quick else _RESULTS)
    text = heading(args, load)
    measured: dict[str, Outcomes] = {}
    for name in workloads:
        measured[name] = Bench(WORKLOADS[name], args.system or TABLE, args).measure()
        found = table(WORKLOADS[name], measured[name])
        print(found)
        text += found + "\n"
        if output is not None:  # a run that is interrupted keeps what it has
            output.write_text((text + aims(measured)).rstrip() + "\n")
    print(aims(measured))
    if output is not None:
        print(f"written to {output}")


if __name__ == "__main__":
    main()
