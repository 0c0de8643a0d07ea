"""The table of trainings as Markdown: a section for each problem, a row for each method."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.report import origin, processor
from benchmarks.training_runs import Row

if TYPE_CHECKING:
    from benchmarks.problems.base import Problem

_COLUMNS = (
    "method",
    "reached",
    "steps",
    "µs a step",
    "steps alone, s",
    "range",
    "/ sgc's best",
    "start, s",
    "start and steps, s",
    "/ sgc's best",
    "ELBO",
)


def section(problem: Problem, first: float, target: float, rows: list[Row]) -> str:
    """One problem."""
    course = problem.course
    lines = [
        f"## {problem.title}",
        "",
        f"{problem.words} It is {first:.3f} at the start; the target is {target:.3f}, {course.fraction:.0%} of the way "
        f"to {course.reference:g}, the reference. Adam's learning rate {course.learning_rate:g}, at most "
        f"{course.steps} steps, evaluated every {course.block} with {problem.judge.particles} sample(s).",
        "",
        _line(*_COLUMNS),
        _line("---", *["---:"] * (len(_COLUMNS) - 1)),
        *(_line(*cells(row, rows)) for row in rows),
        "",
    ]
    for row in rows:
        if row.failure is not None:
            lines += [f"{row.method.name} fails: `{row.failure}`", ""]
    return "\n".join(lines)


def cells(row: Row, rows: list[Row]) -> list[str]:
    """A row; the rows of sgc among all of them give what it is compared with."""
    if row.failure is not None:
        return [row.method.name, "fails", *[""] * (len(_COLUMNS) - 2)]
    start = f"{row.start:.1f}"
    reached = f"{len(row.reached)} of {len(row.runs)}"
    pace = f"{1e6 * row.pace:.0f}"
    if not row.works:
        return [row.method.name, f"{reached}", "", pace, "not reached", "", "", start, "", "", f"{row.elbo:.3f}"]
    seconds = [run.seconds for run in row.reached]
    return [
        row.method.name,
        reached,
        f"{row.steps:.0f}",
        pace,
        f"{row.seconds:.2f}",
        f"{min(seconds):.2f} - {max(seconds):.2f}" + ("" if len(seconds) == len(row.runs) else " or never"),
        _ratio(row, rows, lambda row: row.seconds),
        start,
        f"{row.together:.1f}",
        _ratio(row, rows, lambda row: row.together),
        f"{row.elbo:.3f}",
    ]


def _ratio(row: Row, rows: list[Row], of: Callable[[Row], float]) -> str:
    best = min((of(other) for other in rows if other.method.library == "sgc" and other.works), default=math.nan)
    return "" if math.isnan(best) else f"{of(row) / best:.2f}"


def _line(*values: str) -> str:
    return f"| {' | '.join(values)} |"


def heading(args: argparse.Namespace, load: float) -> str:
    """Where, when and how it was measured."""
    return "\n".join(
        [
            "# Training to a given ELBO, time",
            "",
            *origin("benchmarks.training", "torch", "pyro-ppl", "sgc", "numpyro", "jax", "funsor"),
            f"- {processor()}; 1 thread a process, OpenMP's, Inductor's and XLA's; load average {load:.2f} before",
            f"- {args.seeds} runs of each method, with the seeds 0 to {args.seeds - 1}; the same model, guide, data, "
            "first values and learning rate of Adam for all; the median, and the range of the runs that reach the "
            "target. Where fewer than half of them do, it is *not reached*, and the ELBO is that of the end",
            "- a run ends at the first evaluation that reaches the target. The ELBO is evaluated outside of the clock, "
            "in another process, by eager Pyro (the same samples at each evaluation), whoever trains",
            "- the reference of a target was measured beforehand under another seed: the highest ELBO of all methods "
            "of sgc after all steps, at the learning rates 0.003, 0.01, 0.03 and 0.1; that of all rows is the one "
            "with the highest ELBO on the mean of these methods (`python -m benchmarks.training --reference`)",
            "- start: everything is made and compiled, from an empty cache (but for torch's precompiled headers and "
            "sgc's own library), once for all runs: sgc and Pyro until two steps have been taken, NumPyro until the "
            "program of many steps is compiled. Libraries are imported beforehand. `auto` measures its choices in it. "
            "sgc waits for its compiler here (`wait=True`); by default steps run meanwhile",
            "- steps alone: the steps between evaluations, in the fastest way that a library has: sgc's `svi.run`, "
            "NumPyro's `svi.update` within `lax.scan`, Pyro's `svi.step`. sgc and Pyro bind or trace the parameters of "
            "a new run in its first two steps, which count as the others of their block do",
            "- score functions are those of `TraceGraph_ELBO` (NumPyro has no baselines), sums over the values of "
            "discrete sites those of `TraceEnum_ELBO`; K is the number of particles, vectorised but for AIR",
            f"- a run ends, too, when its steps have taken {args.limit:g} s",
            "",
            "",
        ]
    )
