"""Draws how the cost of a step grows: with the length of a chain, with the batch, with the number of particles.

    python -m benchmarks.plots                 # measures, and draws into benchmarks/plots/
    python -m benchmarks.plots --redraw        # draws again what was measured last

The measurement is that of the table (see :mod:`benchmarks.run`) with fewer rounds; the numbers are kept beside the
pictures, in points.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.ticker

from benchmarks.catalogue import Entry
from benchmarks.run import Bench, options, warn_of_load
from benchmarks.systems import BOUND, NUMPYRO_RUN, NUMPYRO_STEP, PYRO, RUN, STEP

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).with_name("plots")

STYLES = {
    PYRO: {"color": "tab:red", "marker": "s"},
    NUMPYRO_STEP: {"color": "tab:orange", "marker": "^"},
    NUMPYRO_RUN: {"color": "tab:orange", "marker": "^", "linestyle": "--", "markerfacecolor": "none"},
    STEP: {"color": "tab:blue", "marker": "o"},
    RUN: {"color": "tab:blue", "marker": "o", "linestyle": "--", "markerfacecolor": "none"},
    BOUND: {"color": "black", "marker": "x"},
}
"""The systems that are drawn; a dashed line is one call for many steps."""


class Panel(NamedTuple):
    """One picture's half: a workload whose size, or number of particles, grows."""

    title: str
    family: str
    sizes: dict[str, int]
    grows: str
    values: tuple[int, ...]


FIGURES: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "time": (
        "T, statements unrolled",
        (
            Panel("Gaussian chain", "GaussianChain", {}, "steps", (5, 20, 50, 200)),
            Panel("Discrete chain", "DiscreteChain", {}, "steps", (5, 20, 50, 200)),
        ),
    ),
    "batch": (
        "images a batch",
        (
            Panel("VAE", "Autoencoder", {"hidden": 64}, "batch", (8, 32, 128, 512, 2048)),
            Panel("Sigmoid belief net, NVIL", "BeliefNet", {}, "batch", (8, 32, 128, 512, 2048)),
        ),
    ),
    "particles": (
        "particles, vectorised",
        (Panel("VAE, batch 32", "Autoencoder", {"hidden": 64, "batch": 32}, "particles", (1, 2, 4, 8, 16, 32)),),
    ),
}

Points = dict[str, dict[str, list[tuple[int, float]]]]
"""For each panel's title and each system: the size and the seconds a step."""


def measure(panel: Panel, args: argparse.Namespace) -> dict[str, list[tuple[int, float]]]:
    """The medians; a system that fails at some size has no point there."""
    points: dict[str, list[tuple[int, float]]] = {system: [] for system in args.system or STYLES}
    for value in panel.values[: args.points]:
        particles = value if panel.grows == "particles" else 1
        sizes = panel.sizes if panel.grows == "particles" else {**panel.sizes, panel.grows: value}
        entry = Entry(f"{panel.title}, {panel.grows} {value}", panel.family, sizes)
        for system, outcome in Bench(entry, points, args, particles).measure().items():
            if outcome.works:
                points[system].append((value, outcome.median))
            else:
                print(f"{entry.title}: {system} fails: {outcome.failure}")
    return points


def draw(name: str, label: str, panels: tuple[Panel, ...], points: Points, folder: Path) -> Path:
    """One picture, logarithmic on both axes, one y axis for all panels."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.2 + 4.2 * len(panels), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    handles = {}
    for axis, panel in zip(axes[0], panels, strict=True):
        for system, style in STYLES.items():
            found = points.get(panel.title, {}).get(system)
            if found:
                sizes, times = zip(*found, strict=True)
                (handles[system],) = axis.plot(sizes, [1e6 * time for time in times], label=system, **style)
        axis.set(title=panel.title, xlabel=label, xscale="log", yscale="log")
        measured = sorted({size for found in points.get(panel.title, {}).values() for size, _ in found})
        axis.set_xticks(measured, [str(size) for size in measured])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.grid(True, which="major", alpha=0.4)
    axes[0][0].set_ylabel("µs a training step")
    if handles:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=1 + len(panels), frameon=False)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    """Measure, unless told to draw again, and draw."""
    parser = options()
    parser.description = (__doc__ or "").partition("\n")[0]
    parser.set_defaults(rounds=3, seconds=0.2, warm=False)
    parser.add_argument("--figure", choices=list(FIGURES), action="append", help="may be given several times")
    parser.add_argument("--points", type=int, help="only so many sizes of each, the smallest")
    parser.add_argument("--redraw", action="store_true", help="draw what was measured last")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    kept = args.folder / "points.json"
    points: Points = json.loads(kept.read_text()) if kept.exists() else {}
    if not args.redraw:
        warn_of_load()
    for name in args.figure or FIGURES:
        label, panels = FIGURES[name]
        if not args.redraw:
            for panel in panels:
                points[panel.title] = measure(panel, args)
                kept.write_text(json.dumps(points, indent=1) + "\n")
        print(f"written to {draw(name, label, panels, points, args.folder)}")


if __name__ == "__main__":
    main()
