"""Finds the number of a program's Python that is not the one that a compiled program computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sgc.graph.effects import ancestors, dependencies
from sgc.graph.program import Check
from sgc.runtime.specializing.specialization import Specialization


def failed_number(specialization: Specialization, tensors: Sequence[Tensor]) -> Check | None:
    """The first condition on numbers that is false for these inputs of the program; None if all hold.

    Numbers depend on inputs alone: nothing is drawn.
    """
    checks = [check for check in specialization.checks if check.of_numbers]
    program = specialization.capture.program
    nodes = [program.node(check.node) for check in checks]
    run = _Part(program.module, ancestors(nodes, dependencies(program.module.graph)))
    with torch.no_grad():
        run.run(*(tensor.detach() for tensor in tensors))
    return next((check for check, node in zip(checks, nodes, strict=True) if not run.env[node].all()), None)


class _Part(fx.Interpreter):
    """Runs some nodes of a program."""

    def __init__(self, module: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._nodes = nodes

    def run_node(self, n: fx.Node) -> Any:
        return super().run_node(n) if n in self._nodes or n.op == "placeholder" else None
