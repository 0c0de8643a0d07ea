"""Runs every program of the zoo twice through Pyro's own TraceGraph_ELBO.

Usage: ``python -m tests.reference.zoo [NAME ...]``; the exit status is the number of failures.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import TraceGraph_ELBO

from tests.reference.zoo import ZOO, Entry
from tests.reference.zoo.leaves import leaves_of


class Recorder(TraceGraph_ELBO):
    """Remembers the leaves that the surrogate loss depends on."""

    leaves: list[torch.Tensor] = []

    def _loss_and_surrogate_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        loss, surrogate = super()._loss_and_surrogate_loss(model, guide, args, kwargs)
        self.leaves = list(leaves_of(surrogate))
        return loss, surrogate


def check(entry: Entry) -> tuple[float, int]:
    """The second call's loss, and how many tensors got a gradient; raises if any is not finite."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    case = entry.make()
    elbo = Recorder(**case.options)
    for _ in range(2):
        loss = elbo.loss_and_grads(case.model, case.guide, *case.args, **case.kwargs)
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        for leaf in elbo.leaves:
            if leaf.grad is None or not leaf.grad.isfinite().all():
                raise ValueError(f"a gradient is not finite: {leaf.grad}")
    return loss, len(elbo.leaves)


def main(names: list[str]) -> int:
    failures = 0
    chosen = [entry for entry in ZOO if not names or entry.name in names]
    for entry in chosen:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                loss, count = check(entry)
                outcome = f"{loss:12.4f} {count:3d} grads"
            except Exception as error:
                if names:
                    raise
                failures += 1
                outcome = f"FAILED {type(error).__name__}: {error}"
        print(f"{entry.name:36s} {outcome} {(time.perf_counter() - start) * 1e3:7.1f} ms")
        for text in sorted({f"{w.category.__name__}: {w.message}" for w in caught}):
            print(f"    {text.splitlines()[0][:180]}")
    print(f"{len(chosen)} programs, {failures} failures, {sum(e.inductor for e in chosen)} for Inductor")
    return failures


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
