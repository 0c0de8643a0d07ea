"""Where the time of a step goes: in the compiled program by kind of kernel, and around it.

``python -m benchmarks.profile --workload NAME`` prints the table for sgc and for the same step by hand. The kinds are
told by torch's profiler, which Inductor reports each kernel to; it makes kernels slower, the smallest most, so its
times are shares. What a step takes in all is measured without it, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pyro
import torch
import torch._inductor.config as inductor_config
from torch.profiler import ProfilerActivity, profile

from benchmarks.catalogue import WORKLOADS
from benchmarks.loss import microseconds
from benchmarks.systems.by_hand import ByHand
from benchmarks.systems.compiled import SviRun
from benchmarks.workloads import make

ROUNDS = 20
KINDS = {
    "fused loops": ("cpp_fused",),
    "random draws": ("rand", "uniform", "normal", "exponential", "_standard_gamma", "dirichlet"),
    "matrix products": ("mm",),  # what has "gamma" in its name is above
    "memory, copies": (
        "empty",
        "zero",
        "as_strided",
        "lift_fresh",
        "expand",
        "detach",
        "aten::to",
        "cat",
        "copy_",
        "item",
    ),
}
"""By parts of the kernels' names; the first kind with one. The others are whatever else torch computes."""

_LAYERS = ("##", "AOTDispatcher", "resolve_conj", "_local_scalar_dense")
"""Parts of names that stand for no kernel of their own."""


def kind_of(kernel: str) -> str:
    """Of a name that the profiler reports, such as ``aoti_torch_cpu_mm_out`` or ``graph_3_cpp_fused_add_0``."""
    if kernel.endswith("_grad"):
        return "other kernels"
    return next((kind for kind, parts in KINDS.items() if any(part in kernel for part in parts)), "other kernels")


def kernels(advance: Callable[[], Any], steps: int) -> dict[str, tuple[float, float]]:
    """Microseconds and calls a step of each kind."""
    advance()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        advance()
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for event in profiler.key_averages():
        if any(part in event.key for part in _LAYERS):
            continue
        kind = kind_of(event.key)
        taken, calls = found[kind]
        found[kind] = taken + event.self_cpu_time_total / steps, calls + event.count / steps
    return dict(found)


def prepared(name: str) -> tuple[SviRun, ByHand]:
    """Both systems, with a parameter store that is the first's."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    entry = WORKLOADS[name]
    ours, theirs = SviRun(make(entry.family, entry.sizes)), ByHand(make(entry.family, entry.sizes))
    for system in (ours, theirs):
        system.prepare()
        system.advance()
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", required=True, choices=WORKLOADS)
    name = parser.parse_args().workload
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ours, theirs = prepared(name)

    def repeated(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [call() for _ in range(ours.steps_a_call)]

    steps = ours.steps_a_call
    by_hand, one_by_one = repeated(theirs.advance), repeated(lambda: ours.svi.step(*ours.args))
    calls = {"svi.step": one_by_one, "svi.run": ours.advance, "hand": by_hand}
    times = microseconds(calls, ROUNDS, seconds=0.0)  # a turn is one call, of many steps
    taken = {system: statistics.median(turns) / steps for system, turns in times.items()}
    with inductor_config.patch({"cpp.enable_kernel_profile": True}):
        ours, theirs = prepared(name)
        found = kernels(ours.advance, steps), kernels(repeated(theirs.advance), steps)
    print(f"{WORKLOADS[name].title}\n")
    print(f"{'':24s}{'sgc':>12s}{'by hand':>12s}{'sgc, calls':>12s}{'by hand':>12s}")
    for kind in sorted({*found[0], *found[1]}):
        (time_of_ours, calls_of_ours), (time_of_theirs, calls_of_theirs) = (one.get(kind, (0.0, 0.0)) for one in found)
        print(f"{kind:24s}{time_of_ours:12.1f}{time_of_theirs:12.1f}{calls_of_ours:12.1f}{calls_of_theirs:12.1f}")
    print(f"\nmicroseconds a step: svi.step {taken['svi.step']:.1f}, svi.run {taken['svi.run']:.1f}, ", end="")
    print(f"by hand {taken['hand']:.1f}")


if __name__ == "__main__":
    main()
