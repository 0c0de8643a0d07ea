"""The table as Markdown: where and how it was measured, a section for each workload, and the aims."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from benchmarks.catalogue import WORKLOADS, Entry
from benchmarks.outcome import Outcome, Outcomes, disagreements, ratio
from benchmarks.systems import BOUND, NUMPYRO_RUN, NUMPYRO_STEP, PYRO, RUN, STEP
from benchmarks.systems.base import LEARNING_RATE, STEPS_A_RUN
from benchmarks.worker import First

_COLUMNS = (
    "system",
    "µs a step",
    "range",
    f"{PYRO} / this",
    "start, s",
    "from cache, s",
    "peak memory, MiB",
    "from cache, MiB",
    "mean loss",
    "± error",
)


def table(entry: Entry, outcomes: Outcomes) -> str:
    """One workload: a row for each system, then what fails and which losses disagree."""
    lines = [
        f"## {entry.title}",
        "",
        _row(*_COLUMNS),
        _row("---", *["---:"] * (len(_COLUMNS) - 1)),
        *(_row(*_cells(system, outcome, outcomes.get(PYRO))) for system, outcome in outcomes.items()),
        "",
    ]
    remarks = [f"{name} fails: `{found.failure}`" for name, found in outcomes.items() if found.failure is not None]
    for remark in remarks + disagreements(outcomes):
        lines += [remark, ""]
    return "\n".join(lines)


def _cells(system: str, outcome: Outcome, reference: Outcome | None) -> list[str]:
    first = [_first(outcome.cold, 0), _first(outcome.warm, 0), _first(outcome.cold, 1), _first(outcome.warm, 1)]
    if not outcome.works:
        return [system, "fails", "", "", *first, "", ""]
    steps = [1e6 * turn.step for turn in outcome.turns]
    mean, error = outcome.loss
    faster = ratio(reference, outcome)
    return [
        system,
        f"{1e6 * outcome.median:.0f}",
        f"{min(steps):.0f} - {max(steps):.0f}",
        "" if faster is None else f"{faster:.1f}",
        *first,
        f"{mean:.2f}",
        f"{error:.2f}",
    ]


def _first(found: First | None, column: int) -> str:
    return "" if found is None else f"{found[column]:.{1 - column}f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


class Aim(NamedTuple):
    """A ratio, and the number that it should reach or stay below."""

    title: str
    of: Callable[[Outcomes], float | None]
    bound: Callable[[Entry], float]
    at_least: bool

    def met(self, found: float, entry: Entry) -> bool:
        bound = self.bound(entry)
        return found >= bound if self.at_least else found <= bound


def _compilation(outcomes: Outcomes) -> float | None:
    ours, theirs = (found.cold if (found := outcomes.get(name)) else None for name in (STEP, NUMPYRO_STEP))
    return ours.seconds / theirs.seconds if ours and theirs else None


_AIMS = (
    Aim(f"{PYRO} / {STEP}", lambda o: ratio(o.get(PYRO), o.get(STEP)), lambda e: 50.0 if e.chain else 10.0, True),
    Aim(f"{NUMPYRO_STEP} / {STEP}", lambda o: ratio(o.get(NUMPYRO_STEP), o.get(STEP)), lambda _: 1.0, True),
    Aim(f"{NUMPYRO_RUN} / {RUN}", lambda o: ratio(o.get(NUMPYRO_RUN), o.get(RUN)), lambda _: 1.0, True),
    Aim(f"{STEP} / {BOUND}", lambda o: ratio(o.get(STEP), o.get(BOUND)), lambda _: 1.1, False),
    Aim(f"start of {STEP} / of {NUMPYRO_STEP}", _compilation, lambda _: 1.0, False),
)


def aims(measured: dict[str, Outcomes]) -> str:
    """Each aim on each workload: the ratio of medians, and whether it is met. A blank was not measured."""
    lines = [
        "## Aims",
        "",
        "Ratios of median times. A blank: one of the two was not measured or fails.",
        "",
        _row("workload", *(aim.title for aim in _AIMS)),
        _row("---", *["---:"] * len(_AIMS)),
    ]
    tally = [[0, 0] for _ in _AIMS]
    for name, outcomes in measured.items():
        cells = []
        for aim, (index, entry) in zip(_AIMS, enumerate([WORKLOADS[name]] * len(_AIMS)), strict=True):
            found = aim.of(outcomes)
            if found is None:
                cells.append("")
                continue
            met = aim.met(found, entry)
            tally[index][0] += met
            tally[index][1] += 1
            sign = "≥" if aim.at_least else "≤"
            cells.append(f"{found:.2f} ({sign} {aim.bound(entry):g}: {'met' if met else 'missed'})")
        lines.append(_row(WORKLOADS[name].title, *cells))
    lines.append(_row("met", *(f"{met} of {count}" for met, count in tally)))
    return "\n".join([*lines, ""])


def heading(args: argparse.Namespace, load: float) -> str:
    """Where, when and how it was measured."""
    pinned = "each process kept to that many cores" if hasattr(os, "sched_setaffinity") else "not pinned"
    return "\n".join(
        [
            "# A training step, time",
            "",
            *origin("benchmarks", "torch", "pyro-ppl", "sgc", "numpyro", "jax"),
            f"- {processor()}{_gpu(args.device)}; {args.threads} thread(s) a process, OpenMP's, "
            f"Inductor's and XLA's; {pinned}; load average {load:.2f} before",
            f"- median and range of {args.rounds} rounds of {args.seconds:g} s each, the systems taking turns on the "
            "same cores",
            "- a step is the loss (minus the ELBO), its gradients and Adam, at one learning rate everywhere: "
            f"{LEARNING_RATE:g}, so that parameters stay where they began, every system does the same arithmetic "
            "throughout, and the mean losses must agree",
            f"- `svi.run` and `lax.scan` take {STEPS_A_RUN} steps a call; the time is that of the call over the steps",
            "- the loop of sgc's third way uses `torch.optim.Adam` with its defaults (neither fused nor foreach) on a "
            "CPU and fused on a GPU, Pyro `pyro.optim.Adam`, NumPyro `numpyro.optim.Adam`",
            "- NumPyro uses TraceGraph_ELBO where a variable is discrete and Trace_ELBO elsewhere; it has no baselines",
            "- by hand: the same loss, gradient and Adam in plain torch, vectorised, one graph compiled by Inductor "
            "with the options that sgc asks it for; nothing is checked there, while sgc and Pyro (but for the row "
            "without validation) check parameters and values at every step",
            "- the start captures, compiles with an empty cache (but for torch's precompiled headers and sgc's own "
            "library, which are compiled once on a machine) and takes two steps (`svi.run` and `lax.scan`: one call of "
            "many steps); from cache: the same in a fresh process that finds Inductor's cache; as many processes at a "
            "time as there are cores",
            "- peak memory: the most that the process held up to the end of the start, above what it held with "
            "its libraries imported; compilers that run as processes of their own do not count",
            *(_ON_A_GPU if args.device != "cpu" else ()),
            "",
            "",
        ]
    )


def origin(module: str, *packages: str) -> list[str]:
    """When and by which command it was measured, and with which versions."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return [
        f"Measured on {date.today().isoformat()} by `{command}`",
        "",
        f"- {versions}, Python {platform.python_version()}",
    ]


_ON_A_GPU = (
    "- on the GPU: float32 throughout, products of matrices too (no TF32); by hand is a CUDA graph there; `svi.step` "
    "and Pyro's give their loss as a number, for which they wait, while NumPyro's update and by hand do not; memory is "
    "that of the GPU",
)


def _gpu(device: str) -> str:
    """The name of the GPU, by NVIDIA's own program: the process that writes this loads neither torch nor JAX."""
    if device == "cpu":
        return ""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        name = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        name = device
    return f", {name}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def processor() -> str:
    """The machine's processor and its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        name = platform.processor() or platform.machine()
    else:
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {os.cpu_count()} cores"
