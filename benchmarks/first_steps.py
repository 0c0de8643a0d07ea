"""Measures how long a user waits for the first steps: the seconds until the 1st, 10th, 100th, 1,000th, 10,000th.

    python -m benchmarks.first_steps                    # all; writes benchmarks/RESULTS_START.md and start.png
    python -m benchmarks.first_steps --workload vae --output vae.md

Each system takes ``svi.step`` (NumPyro ``jit(svi.update)``) one after another in a fresh process that has every core,
with an empty cache and, where something is kept, once more with what the first process left. The clock starts when the
libraries are imported and the data are there, before model, guide and optimizer are made.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import matplotlib
from tqdm import tqdm

from benchmarks.catalogue import WORKLOADS, Entry
from benchmarks.report import origin, processor
from benchmarks.run import made_once, new_cache, warn_of_load
from benchmarks.systems import AT_ONCE, NUMPYRO_STEP, PYRO
from benchmarks.worker import Climb, Failed, Job, Worker, all_cores

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = (1, 10, 100, 1_000, 10_000)
CACHED = "sgc, from cache"
STYLES: dict[str, dict[str, Any]] = {
    "sgc": {"color": "tab:blue", "marker": "o"},
    CACHED: {"color": "tab:blue", "marker": "o", "linestyle": "--", "markerfacecolor": "none"},
    PYRO: {"color": "tab:red", "marker": "s"},
    "NumPyro": {"color": "tab:orange", "marker": "^"},
}
_FOLDER = Path(__file__).parent

Climbs = dict[str, Climb | Failed]
"""By the names of STYLES."""


def climb(entry: Entry, args: argparse.Namespace) -> Climbs:
    """Every system, each in processes of its own, one after another."""
    kept = new_cache()
    shutil.copytree(made_once("cpu", args.threads), kept, dirs_exist_ok=True)
    try:
        return {
            "sgc": _climb(AT_ONCE, entry, args, args.seconds, kept),
            CACHED: _climb(AT_ONCE, entry, args, args.seconds, kept),
            PYRO: _climb(PYRO, entry, args, args.seconds / 4, kept),  # its pace does not change
            "NumPyro": _climb(NUMPYRO_STEP, entry, args, args.seconds, kept),
        }
    finally:
        shutil.rmtree(kept, ignore_errors=True)


def _climb(system: str, entry: Entry, args: argparse.Namespace, seconds: float, kept: str) -> Climb | Failed:
    job = Job(system, entry.family, entry.sizes, 1, "cpu", args.threads, kept)
    worker = Worker(job, set(all_cores()), seconds + args.patience)
    try:
        return worker.climb(STEPS, seconds)
    except Failed as failed:
        return failed
    finally:
        worker.close()


def table(entry: Entry, climbs: Climbs) -> str:
    """A row for each system; ``~`` before what was not waited for."""
    lines = [
        f"## {entry.title}",
        "",
        f"| seconds until step | {' | '.join(f'{count:,}' for count in STEPS)} |",
        f"| --- | {' | '.join('---:' for _ in STEPS)} |",
    ]
    for name, result in climbs.items():
        cells = ["fails"] + [""] * (len(STEPS) - 1) if isinstance(result, Failed) else [_cell(result, n) for n in STEPS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    failures = [f"\n{name} fails: `{failed.reason}`" for name, failed in climbs.items() if isinstance(failed, Failed)]
    return "\n".join([*lines, *failures, ""])


def _cell(result: Climb, count: int) -> str:
    seconds, measured = result.until(count)
    return f"{'' if measured else '~'}{seconds:.3g}"


_AIMS = (
    ("sgc", PYRO, 1, 1.1),
    ("sgc", PYRO, 10, 2.0),
    ("sgc", PYRO, 100, 2.0),
    ("sgc", PYRO, 1_000, 1.0),
    ("sgc", "NumPyro", 1_000, 1.3),
    ("sgc", PYRO, 10_000, 1.0),
    ("sgc", "NumPyro", 10_000, 1.0),
)
"""Whose time, divided by whose, until which step, should be at most how much."""


def aims(measured: dict[str, Climbs]) -> str:
    """Each aim: the ratio on each workload, in ascending order, and how many reach it."""
    lines = [
        "## Aims",
        "",
        "| seconds until step | divided by | at most | reached by | ratios |",
        "| ---: | --- | ---: | ---: | --- |",
    ]
    for name, other, count, bound in _AIMS:
        pairs = [(climbs[name], climbs[other]) for climbs in measured.values()]
        ratios = sorted(
            one.until(count)[0] / two.until(count)[0]
            for one, two in pairs
            if not isinstance(one, Failed) and not isinstance(two, Failed)
        )
        reached = sum(ratio <= bound for ratio in ratios)
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {count:,} | {other} | {bound:g} | {reached} of {len(ratios)} | {shown} |")
    return "\n".join([*lines, ""])


def draw(measured: dict[str, Climbs], path: Path) -> None:
    """A panel for each workload, logarithmic on both axes."""
    columns = min(4, len(measured))
    rows = -(-len(measured) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1 + 3.2 * columns, 0.8 + 2.6 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    handles = {}
    for axis, (name, climbs) in zip(axes.flat, measured.items(), strict=False):
        for system, result in climbs.items():
            if not isinstance(result, Failed):
                seconds = [result.until(count)[0] for count in STEPS]
                (handles[system],) = axis.plot(STEPS, seconds, label=system, markersize=4, **STYLES[system])
        axis.set_title(WORKLOADS[name].title, fontsize=8)
        axis.set(xscale="log", yscale="log")
        axis.grid(True, which="major", alpha=0.4)
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    figure.supxlabel("steps taken")
    figure.supylabel("seconds")
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(STYLES), frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def heading(args: argparse.Namespace, load: float) -> str:
    """Where, when and how it was measured."""
    return "\n".join(
        [
            "# The first steps, time",
            "",
            *origin("benchmarks.first_steps", "torch", "pyro-ppl", "sgc", "numpyro", "jax"),
            f"- {processor()}; {args.threads} thread(s) for arithmetic, all cores for what compiles; load average "
            f"{load:.2f} before",
            "- `svi.step` in sgc and Pyro, `jit(svi.update)` in NumPyro, one after another in a fresh process, in "
            "seconds from when libraries are imported and data are there",
            "- sgc is as `sgc.SVI` is without options: the first steps run operator by operator while another process "
            "compiles; what is compiled once on a machine (its library, torch's precompiled headers) is there",
            f"- `~`: not waited for; after {args.seconds:g} s ({args.seconds / 4:g} s for Pyro, which goes on as it "
            "began) the pace of the last quarter is taken to go on",
            "",
            "![seconds against steps taken](start.png)",
            "",
            "",
        ]
    )


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append", help="may be given several times")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a system may take steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patience", type=float, default=240.0, help="how long one step may take")
    parser.add_argument("--output", type=Path, default=_FOLDER / "RESULTS_START.md")
    parser.add_argument("--plot", type=Path, default=_FOLDER / "start.png")
    args = parser.parse_args()
    os.environ.pop("SGC_WAIT", None)  # what is measured is the default
    text = heading(args, warn_of_load())
    measured: dict[str, Climbs] = {}
    for name in tqdm(args.workload or list(WORKLOADS)):
        measured[name] = climb(WORKLOADS[name], args)
        text += (section := table(WORKLOADS[name], measured[name])) + "\n"
        print(section)
        args.output.write_text(text + aims(measured))  # a run that is interrupted keeps what it has
        draw(measured, args.plot)
    print(aims(measured))


if __name__ == "__main__":
    main()
