"""What each tuning of Inductor's gains: each is switched off in turn, and steps and starts are measured.

    python -m benchmarks.tuning                        # the workloads of the table in docs/performance.md
    python -m benchmarks.tuning --all                  # all workloads
    python -m benchmarks.tuning --workload air --tuning lean_wrapper --tuning one_piece

The table has a row for each tuning and a column for each workload: the time without it divided by the time with it, so
that 1.00 is no gain. Of what makes steps faster it is the time of a step in ``svi.run`` (the median of turns that all
programs of a workload take one after another); of what makes compilations faster the time of the first call, each from
an empty cache. All programs of a workload share one process, and one parameter store.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch._inductor.utils import fresh_cache

import sgc
from benchmarks.catalogue import WORKLOADS
from benchmarks.systems.compiled import SviRun
from benchmarks.turns import turn
from benchmarks.workloads import make
from sgc.emit.inductor.tuning.all_tunings import TUNINGS
from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native import library, processor
from sgc.native.switches import without

USUAL = ("beta_bernoulli", "vae", "sigmoid_belief_net", "gamma_family", "regression_normal", "gaussian_chain_50")
"""A program of each kind: tiny, matrix products, discrete sites, gamma draws, many parameters, long."""

STARTS = 2
"""How often a program is compiled for the time that takes, of which the shorter counts."""


def first_call(name: str, off: Sequence[str]) -> tuple[SviRun, float]:
    """A workload's program, compiled without some tunings; and the seconds of the first call."""
    entry = WORKLOADS[name]
    processor.forget()
    with without(*off):
        system = SviRun(make(entry.family, entry.sizes))
        start = time.perf_counter()
        system.prepare()
        system.advance()
        return system, time.perf_counter() - start


def start(name: str, off: Sequence[str]) -> float:
    """The seconds of the first call, from an empty cache."""
    with fresh_cache():
        return first_call(name, off)[1]


def steps(calls: dict[str, Callable[[], Any]], seconds: float, rounds: int) -> dict[str, float]:
    """Seconds a call: the medians over turns of so many seconds."""
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            turns[name].append(turn(call, seconds))
    return {name: statistics.median(times) for name, times in turns.items()}


def gains(name: str, tunings: Sequence[Tuning], seconds: float, rounds: int) -> dict[str, float]:
    """By tuning, the time without it divided by the time with it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    found: dict[str, float] = {}
    compiling = [tuning.name for tuning in tunings if tuning.faster == "compilation"]
    if compiling:
        starts = {each: min(start(name, off) for _ in range(STARTS)) for each, off in _each_off(compiling)}
        found |= {each: starts[each] / starts[""] for each in compiling}
    stepping = [tuning.name for tuning in tunings if tuning.faster == "steps"]
    if stepping:
        with fresh_cache():  # one for all: what is the same is compiled once
            systems = {each: first_call(name, off)[0] for each, off in _each_off(stepping)}
        times = steps({each: system.advance for each, system in systems.items()}, seconds, rounds)
        found |= {each: times[each] / times[""] for each in stepping}
    return found


def _each_off(names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    return [("", ()), *((name, (name,)) for name in names)]


def main() -> None:
    device = "cpu"
    known = {tuning.name: tuning for tuning in TUNINGS if tuning.device in ("any", device)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="may be given again")
    parser.add_argument("--all", action="store_true", help="all workloads")
    parser.add_argument("--tuning", action="append", choices=known, help="may be given again; all by default")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a turn lasts")
    parser.add_argument("--rounds", type=int, default=7, help="how many turns each program takes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if library.is_available():
        library.library()
    start("beta_bernoulli", ())  # precompiled headers are there then
    workloads = list(WORKLOADS) if options.all else (options.workload or USUAL)
    tunings = [known[name] for name in (options.tuning or known)]
    began = time.perf_counter()
    columns = {name: gains(name, tunings, options.seconds, options.rounds) for name in workloads}
    print(f"sgc {sgc.__version__}, torch {torch.__version__}; {time.perf_counter() - began:.0f} s\n")
    print(f"| without | faster | {' | '.join(workloads)} | most |")
    print(f"| --- | --- | {' | '.join('---:' for _ in workloads)} | ---: |")
    for tuning in tunings:
        row = [columns[name][tuning.name] for name in workloads]
        cells = " | ".join(f"{ratio:.2f}" for ratio in (*row, max(row)))
        print(f"| `{tuning.name}`: {tuning.what} | {tuning.faster} | {cells} |")


if __name__ == "__main__":
    main()
