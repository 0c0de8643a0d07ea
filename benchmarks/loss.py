"""Loss and gradients alone, without an optimizer: sgc against eager Pyro and Pyro's Jit, on the same parameters.

``python -m benchmarks.loss`` prints the table of ``benchmarks/RESULTS_LOSS.md``. The systems take turns in one process
on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import JitTraceGraph_ELBO, TraceGraph_ELBO

import sgc
from benchmarks.catalogue import WORKLOADS
from benchmarks.report import origin, processor
from benchmarks.workloads import make

NAMES = ("beta_bernoulli", "vae", "sigmoid_belief_net")
PYRO, JIT, SGC = "Pyro", "Pyro Jit", "sgc"


def calls(name: str) -> dict[str, Callable[[], Any]]:
    """Each system's loss and gradients of a workload, from no gradients at all; all are ready to be timed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    entry = WORKLOADS[name]
    workload = make(entry.family, entry.sizes)
    model, guide = workload.pyro()
    data = tuple(torch.tensor(array) for array in workload.data)
    loss_module = sgc.compile(model, guide, wait=True).initialize(*data)
    parameters = list(loss_module.parameters())
    eager, jit = TraceGraph_ELBO(), JitTraceGraph_ELBO(ignore_jit_warnings=True)
    losses: dict[str, Callable[[], Any]] = {
        PYRO: lambda: eager.loss_and_grads(model, guide, *data),
        JIT: lambda: jit.loss_and_grads(model, guide, *data),
        SGC: lambda: loss_module(*data).backward(),
    }

    def from_none(compute: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            for parameter in parameters:
                parameter.grad = None
            compute()

        return call

    found = {system: from_none(compute) for system, compute in losses.items()}
    for call in found.values():
        for _ in range(5):
            call()
        assert all(parameter.grad is not None for parameter in parameters)
    return found


def microseconds(found: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The mean of a call in each round, each round's turn as long as that, and one call at least."""
    times: dict[str, list[float]] = {system: [] for system in found}
    for _ in range(rounds):
        for system, call in found.items():
            start, count, taken = time.perf_counter(), 0, 0.0
            while not count or taken < seconds:
                call()
                count, taken = count + 1, time.perf_counter() - start
            times[system].append(1e6 * taken / count)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each system's turn is")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help=f"default: {', '.join(NAMES)}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the Jit's tracer warns of each constant that it finds
    torch.set_num_threads(1)
    print("# Loss and gradients, time\n")
    print("\n".join(origin("benchmarks.loss", "torch", "pyro-ppl", "sgc")))
    print(f"- {processor()}; 1 thread; Pyro and sgc validate at every call")
    print(
        f"- the median of {options.rounds} rounds, each the mean of {options.seconds:g} s, and that of their ratios\n"
    )
    print(f"| workload | {PYRO}, µs | {JIT}, µs | {SGC}, µs | {PYRO} / {SGC} | {JIT} / {SGC} |")
    print("| --- |" + " ---: |" * 5)
    for name in options.workload or NAMES:
        times = microseconds(calls(name), options.rounds, options.seconds)
        medians = [f"{statistics.median(times[system]):.0f}" for system in (PYRO, JIT, SGC)]
        ratios = [
            f"{statistics.median(a / b for a, b in zip(times[system], times[SGC], strict=True)):.1f}"
            for system in (PYRO, JIT)
        ]
        print(f"| {WORKLOADS[name].title} | {' | '.join(medians + ratios)} |", flush=True)


if __name__ == "__main__":
    main()
