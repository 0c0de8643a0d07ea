"""How long the first loss takes: one step of eager Pyro, and sgc's first step with its prototype and capture.

``python -m benchmarks.first_loss`` runs every program of the zoo (``tests/reference/zoo``), each in fresh state, and
prints the deciles of both times and the line ``sgc = slope * Pyro + constant`` of least absolute errors.
``python -m benchmarks.first_loss --profile NAME`` prints where the time of one program goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import statistics
import time
import warnings

import numpy as np
import pyro
import torch
from pyro.infer import TraceGraph_ELBO

import sgc.infer
from tests.reference.zoo import ZOO, Entry


def seconds(entry: Entry, make: type[TraceGraph_ELBO], repeats: int) -> float:
    """The shortest of some first calls of ``loss_and_grads``, each of a program made anew, in CPU seconds."""
    found = []
    for _ in range(repeats):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        case = entry.make()
        elbo = make(**case.options)
        gc.collect()
        start = time.process_time()
        elbo.loss_and_grads(case.model, case.guide, *case.args, **case.kwargs)
        found.append(time.process_time() - start)
    return min(found)


def fit(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and intercept of the line through two of the points that has the least sum of absolute errors."""
    xs, ys = np.array(x), np.array(y)
    first, second = np.triu_indices(len(xs), 1)
    apart = xs[first] != xs[second]
    first, second = first[apart], second[apart]
    slopes = (ys[second] - ys[first]) / (xs[second] - xs[first])
    intercepts = ys[first] - slopes * xs[first]
    errors = np.array([np.abs(ys - a * xs - b).sum() for a, b in zip(slopes, intercepts, strict=True)])
    best = int(errors.argmin())
    return float(slopes[best]), float(intercepts[best])


def profile(entry: Entry, rows: int) -> None:
    """Print the functions in which the first loss of one program spends its time."""
    seconds(entry, sgc.infer.TraceGraph_ELBO, 1)  # once without, for what is imported or cached at first use
    profiler = cProfile.Profile()
    profiler.enable()
    seconds(entry, sgc.infer.TraceGraph_ELBO, 1)
    profiler.disable()
    for order in ("cumulative", "tottime"):
        pstats.Stats(profiler).sort_stats(order).print_stats(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th program")
    parser.add_argument("--repeats", type=int, default=2, help="first calls of each program; the shortest counts")
    parser.add_argument("--profile", metavar="NAME", help="print a profile of this program's first loss, and stop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # CPU time is then wall time, and other work on the machine matters less
    if options.profile:
        profile(next(entry for entry in ZOO if entry.name == options.profile), 60)
        return
    seconds(ZOO[0], sgc.infer.TraceGraph_ELBO, 1)  # what is imported or cached at first use
    theirs, ours = [], []
    entries = ZOO[:: options.every]
    for entry in entries:
        theirs.append(1e3 * seconds(entry, TraceGraph_ELBO, options.repeats))
        ours.append(1e3 * seconds(entry, sgc.infer.TraceGraph_ELBO, options.repeats))
    print(f"{len(entries)} programs, milliseconds of CPU until the first loss and its gradient, on one thread")
    print("decile  " + "".join(f"{10 * (i + 1):7d}" for i in range(9)))
    for name, times in (("Pyro", theirs), ("sgc", ours)):
        print(f"{name:8s}" + "".join(f"{value:7.1f}" for value in statistics.quantiles(times, n=10)))
    ratios = [mine / yours for mine, yours in zip(ours, theirs, strict=True)]
    print("ratio   " + "".join(f"{value:7.1f}" for value in statistics.quantiles(ratios, n=10)))
    slope, constant = fit(theirs, ours)
    print(f"sgc = {slope:.1f} * Pyro + {constant:.0f} ms")
    longest = sorted(zip(ours, (entry.name for entry in entries), strict=True))[-5:]
    print("longest: " + ", ".join(f"{name} {value:.0f}" for value, name in longest))


if __name__ == "__main__":
    main()
