"""Trains problems until their ELBO is good enough: the time that each method takes, in sgc, Pyro and NumPyro.

    python -m benchmarks.training                                # all; writes benchmarks/RESULTS_TRAINING.md
    python -m benchmarks.training --workload hmm --output hmm.md
    python -m benchmarks.training --workload lda --library sgc --seeds 1
    python -m benchmarks.training --quick                        # a smoke run: small problems, few steps, prints only
    python -m benchmarks.training --reference                    # what targets come from; prints only

The process of each method trains, this one evaluates. NumPyro's sums over discrete sites need ``funsor``.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from benchmarks.run import warn_of_load
from benchmarks.training_runs import Plan, Row, Training
from benchmarks.training_table import heading, section
from benchmarks.worker import Failed

if TYPE_CHECKING:
    from benchmarks.problems.base import Method

WORKLOADS = ("belief_net", "mixture", "hmm", "lda", "air")
LIBRARIES = ("sgc", "Pyro", "Pyro Jit", "NumPyro")
REFERENCE_SEED = 1000

_RESULTS = Path(__file__).with_name("RESULTS_TRAINING.md")


def measure(training: Training, args: argparse.Namespace) -> list[Row]:
    """A row for each method of the chosen libraries, one after another."""
    course = training.problem.course
    target = -math.inf if args.quick else training.target
    plan = Plan(course.learning_rate, 1 if args.quick else course.blocks, args.limit, target)
    methods = chosen(training, args, args.library or LIBRARIES)
    return [training.row(method, range(args.seeds), [plan]) for method in tqdm(methods, desc=training.problem.title)]


def chosen(training: Training, args: argparse.Namespace, libraries: Sequence[str]) -> list[Method]:
    """Of the problem's methods those that the command line asks for."""
    parts = args.method or [""]
    of_libraries = [method for method in training.problem.methods if method.library in libraries]
    return [method for method in of_libraries if any(part in method.words for part in parts)]


def refer(training: Training, args: argparse.Namespace) -> str:
    """The ELBO of each method of sgc after all steps, at each learning rate; the mean of these; the best of all."""
    from benchmarks.problems.base import RATES

    problem = training.problem
    plans = [Plan(rate, problem.course.blocks, math.inf, math.inf) for rate in RATES]
    lines = [
        f"## {problem.title}",
        "",
        f"The ELBO for each datum after {problem.course.steps} steps; {training.first:.4f} before.",
        "",
        f"| method | {' | '.join(map(str, RATES))} |\n| --- |" + " ---: |" * len(RATES),
    ]
    ends = []
    for method in tqdm(chosen(training, args, ["sgc"]), desc=problem.title):
        row = training.row(method, [REFERENCE_SEED], plans)
        if not row.runs:
            raise Failed(row.failure or "")
        # Where parameters become NaN at one rate, higher ones are not tried.
        ends.append([run.elbo for run in row.runs] + [-math.inf] * (len(plans) - len(row.runs)))
        lines.append(_line(method.name, ends[-1]))
    means = [statistics.fmean(of_rate) for of_rate in zip(*ends, strict=True)]
    rate, reference = RATES[means.index(max(means))], max(map(max, ends))
    conclusion = f"learning rate {rate:g}, reference {reference:.4f}"
    return "\n".join([*lines, _line("mean", means), "", conclusion, ""])


def _line(name: str, elbos: list[float]) -> str:
    return f"| {name} | {' | '.join(f'{elbo:.4f}' if math.isfinite(elbo) else 'diverges' for elbo in elbos)} |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="may be given several times")
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="may be given several times")
    parser.add_argument("--method", action="append", help="a part of a method's name; may be given several times")
    parser.add_argument("--seeds", type=int, default=5, help="how many runs each method takes")
    parser.add_argument("--limit", type=float, default=30.0, help="the seconds of steps after which a run ends")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small problems, a block of steps, one seed")
    parser.add_argument("--reference", action="store_true", help="measure what targets and learning rates come from")
    parser.add_argument("--output", type=Path, help="where the table is written; RESULTS_TRAINING.md unless --quick")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 1
    load = warn_of_load()
    output = args.output or (None if args.quick or args.reference else _RESULTS)
    text = heading(args, load)
    for name in args.workload or WORKLOADS:
        training = Training(name, args.quick)
        if args.reference:
            print(refer(training, args), flush=True)
            continue
        found = section(training.problem, training.first, training.target, measure(training, args))
        print(found, flush=True)
        text += found + "\n"
        if output is not None:  # a run that is interrupted keeps what it has
            output.write_text(text.rstrip() + "\n")
    if output is not None:
        print(f"written to {output}")


if __name__ == "__main__":
    main()
