"""What a call costs besides the compiled program: guards, the binding of the optimizer, autograd.

``python -m benchmarks.overhead`` takes steps of some workloads with a compiled program that does nothing, and prints
microseconds a call. Nothing is compiled, so that it takes seconds. ``--profile NAME`` prints where the time of
``svi.step`` of one workload goes. That is the step that Python takes, as on a GPU. On a CPU it is one call of C++, and
costs what the table has between ``svi.step`` and ``svi.run``.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, fx

import sgc
from benchmarks.catalogue import WORKLOADS
from benchmarks.systems.compiled import Loop, SviStep
from benchmarks.workloads import make
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.registry import registered

NAMES = ("beta_bernoulli", "regression_normal", "sigmoid_belief_net", "vae", "deep_markov", "air")


def nothing(module: fx.GraphModule, examples: list[Any], rng: str, **_: Any) -> Callable[..., list[Tensor]]:
    """A callable with the results of a module, the same at every call."""
    values = [node.meta["val"] for node in module.graph.find_nodes(op="output")[0].args[0]]
    results = [torch.ones(value.shape, dtype=value.dtype) for value in values]  # a loss of 1, and valid
    return lambda *tensors: results


def microseconds(call: Callable[[], Any], seconds: float) -> float:
    """The mean of a call, in the fastest of a hundred batches."""
    count, taken = 1, 0.0
    while taken < seconds / 100:
        count *= 2
        start = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - start
    batches = []
    for _ in range(100):
        start = time.perf_counter()
        for _ in range(count):
            call()
        batches.append((time.perf_counter() - start) / count)
    return 1e6 * min(batches)


def calls(name: str) -> dict[str, Callable[[], Any]]:
    """What is measured of a workload."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    entry = WORKLOADS[name]
    svi, loop = (cls(make(entry.family, entry.sizes)) for cls in (SviStep, Loop))
    for system in (svi, loop):
        system.prepare()
        for _ in range(3):
            system.advance()

    def loss() -> None:
        with torch.no_grad():
            loop.loss_module(*loop.args)

    def loss_and_backward() -> None:
        loop.loss_module(*loop.args).backward()

    return {"svi.step": svi.advance, "loss": loss, "loss + backward": loss_and_backward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each is measured")
    parser.add_argument("--profile", metavar="NAME", help="print a profile of this workload's svi.step, and stop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with registered(Inductor(nothing)):
        if options.profile:
            step = calls(options.profile)["svi.step"]
            with cProfile.Profile() as profiler:
                for _ in range(10_000):
                    step()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
            return
        for number, name in enumerate(NAMES):
            times = {what: microseconds(call, options.seconds) for what, call in calls(name).items()}
            if not number:
                print(
                    f"{'microseconds a call, sgc ' + sgc.__version__:30s}" + "".join(f"{what:>18s}" for what in times)
                )
            print(f"{name:30s}" + "".join(f"{value:18.1f}" for value in times.values()), flush=True)


if __name__ == "__main__":
    main()
