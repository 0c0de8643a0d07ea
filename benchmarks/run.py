"""Times loss and gradients of every workload in every system, and writes the table.

    python -m benchmarks                       # all; writes benchmarks/RESULTS.md
    python -m benchmarks --workload vae --output results.md

Each system runs in a process of its own, so that none shares Pyro's parameter store, thread pool or compiled code with
another. The processes take turns: every round lets each take as many steps as fill a fixed time, alone. The median over
the rounds is reported, and the range. The mean loss is shown because a fast step that computes something else is none.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from benchmarks.systems import REFERENCE, SYSTEMS
from benchmarks.workloads import WORKLOADS

_RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass
class Outcome:
    """What was found out about one system on one workload; times in seconds."""

    first: float = 0.0
    steps: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.steps)


class Worker:
    """A process that holds one system, and works only when asked."""

    def __init__(self, workload: str, system: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, workload, system, threads), daemon=True)
        self._process.start()
        other.close()
        self.outcome = Outcome()

    def prepare(self) -> None:
        """Time the first step."""
        self._connection.send(None)
        self._receive(lambda first: setattr(self.outcome, "first", first))

    def measure(self, seconds: float) -> None:
        """One round, if the system works."""
        if self.outcome.failure is None:
            self._connection.send(seconds)
            self._receive(self._record)

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)

    def _record(self, measured: tuple[float, float]) -> None:
        step, loss = measured
        self.outcome.steps.append(step)
        self.outcome.losses.append(loss)

    def _receive(self, use: Callable[..., None]) -> None:
        try:
            kind, answer = self._connection.recv()
        except EOFError:
            kind, answer = "failed", f"the process ended with code {self._process.exitcode}"
        if kind == "failed":
            self.outcome.failure = answer
        else:
            use(answer)


def _serve(connection: Connection, workload: str, system: str, threads: int) -> None:
    """The worker's side: prepare at the first message, then a round for each."""
    import pyro
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="sgc-benchmark-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # every compilation is a cold one
        try:
            connection.recv()
            pyro.set_rng_seed(0)
            ready = SYSTEMS[system](WORKLOADS[workload]())
            start = time.perf_counter()
            ready.prepare()
            connection.send(("first", time.perf_counter() - start))
            while True:
                seconds = connection.recv()
                connection.send(("round", _round(ready.step, seconds)))
        except EOFError:
            return
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            reason = " ".join(str(error).split())
            connection.send(("failed", f"{type(error).__name__}: {reason[:200]}"))


def _round(step: Callable[[], float | Tensor], seconds: float) -> tuple[float, float]:
    """Seconds a step, over as many steps as fill the time, and the mean loss."""
    losses = [float(step()) for _ in range(5)]  # warm again after the others' turns
    count, taken = 0, 0.0
    while taken < seconds:
        start = time.perf_counter()
        results = [step() for _ in range(20)]
        taken += time.perf_counter() - start
        count += len(results)
        losses += [float(loss) for loss in results]
    return taken / count, statistics.fmean(losses)


def measure(workload: str, systems: list[str], args: argparse.Namespace) -> dict[str, Outcome]:
    """The rounds of one workload."""
    workers = {system: Worker(workload, system, args.threads) for system in systems}
    try:
        with tqdm(total=len(systems) * (args.rounds + 1), desc=workload) as bar:
            for worker in workers.values():
                worker.prepare()
                bar.update()
            for _ in range(args.rounds):
                for worker in workers.values():
                    worker.measure(args.seconds)
                    bar.update()
    finally:
        for worker in workers.values():
            worker.close()
    return {system: worker.outcome for system, worker in workers.items()}


def table(workload: str, outcomes: dict[str, Outcome]) -> str:
    """Markdown, with the ratio to eager Pyro."""
    described = (WORKLOADS[workload].__doc__ or "").strip()
    lines = [
        f"### {workload}",
        "",
        described,
        "",
        f"| system | µs a step | range | {REFERENCE} / this | first step, s | mean loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    reference = outcomes.get(REFERENCE)
    failures = []
    for system, outcome in outcomes.items():
        if outcome.failure is not None:
            lines.append(f"| {system} | fails | | | | |")
            failures.append(f"{system} fails: `{outcome.failure}`")
            continue
        steps = [1e6 * step for step in outcome.steps]
        ratio = f"{reference.median / outcome.median:.1f}" if reference and reference.steps else ""
        lines.append(
            f"| {system} | {1e6 * outcome.median:.0f} | {min(steps):.0f} - {max(steps):.0f} | {ratio} "
            f"| {outcome.first:.1f} | {statistics.fmean(outcome.losses):.2f} |"
        )
    return "\n".join([*lines, "", *failures, ""] if failures else [*lines, ""])


def heading(args: argparse.Namespace, load: float) -> str:
    """Where, when and how it was measured."""
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "pyro-ppl", "sgc"))
    return "\n".join(
        [
            "# Loss and gradients, time a step",
            "",
            f"Measured on {date.today().isoformat()} by `{command}`",
            "",
            f"- {packages}, Python {platform.python_version()}",
            f"- {_cpu()}, {os.cpu_count()} cores; {args.threads} thread(s) a process; load average {load:.2f} before",
            f"- median and range of {args.rounds} rounds of {args.seconds:g} s each, the systems taking turns",
            "- a step clears the gradients, computes the loss (minus the ELBO) and its gradients; no optimizer",
            "- the first step captures and compiles, with an empty compilation cache",
            "",
            "",
        ]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        import sgc

        return sgc.__version__ if package == "sgc" else "?"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def main() -> None:
    """Measure, print and write."""
    names = {function.__name__: name for name, function in WORKLOADS.items()}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=list(names), action="append", help="may be given several times")
    parser.add_argument("--system", choices=list(SYSTEMS), action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a system's turn is")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=_RESULTS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    if load > 0.5:
        print(f"the load average is {load:.2f}: other work runs on this machine and will disturb the timing")

    workloads = [names[name] for name in args.workload or names]
    text = heading(args, load)
    for workload in workloads:
        found = table(workload, measure(workload, args.system or list(SYSTEMS), args))
        print(found)
        text += found + "\n"
    args.output.write_text(text.rstrip() + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
