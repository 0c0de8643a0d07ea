"""Finds the branch on a sample that goes another way than a compiled program assumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sgc.graph.aliasing import copies
from sgc.graph.effects import AUTOCAST
from sgc.graph.program import Check
from sgc.runtime.specializing.specialization import Specialization


def first_failed(specialization: Specialization, tensors: Sequence[Tensor]) -> Check | None:
    """The assumption that is the first one to fail in a run from the present random state on; None if all hold.

    Nothing but the random state changes.
    """
    program, options = specialization.capture.program, specialization.options
    for _ in range(1 if options.vectorize_particles else options.num_particles):
        run = _UntilFailed(program.module, {check.node: check for check in specialization.checks if check.assumed})
        with torch.no_grad():
            run.run(*copies(tensors[: len(specialization.inputs)]))
        if run.failed is not None:
            return run.failed
    return None


class _UntilFailed(fx.Interpreter):
    """Runs a program until an assumption is false: what is behind it is of the other branch."""

    def __init__(self, module: fx.GraphModule, assumed: dict[str, Check]) -> None:
        super().__init__(module)
        self._assumed = assumed
        self.failed: Check | None = None

    def run_node(self, n: fx.Node) -> Any:
        leaves = n.target is AUTOCAST[1] and self.env[n.all_input_nodes[0]] is not None
        if self.failed is not None and not leaves:
            return None
        value = super().run_node(n)
        check = self._assumed.get(n.name)
        if check is not None and not value:
            self.failed = check
        return value
