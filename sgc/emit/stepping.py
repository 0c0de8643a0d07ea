"""A whole training step, compiled by Inductor: as one call for each step, or as one call for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends import Runner
from sgc.emit.inductor import compile_graph
from sgc.emit.optimize.pipeline import Report, optimize
from sgc.emit.repeat import CAPACITY, repeat


@dataclass
class BuiltStep:
    """A step as it was rewritten, and what it was compiled to; one of the two, whichever was needed first.

    A loop inside the compiled graph spares each step the way through Python and back. It cannot be had where it would
    have to ask a device whether it ends, nor where inputs share memory. Either takes steps of the other's kind as
    well, if more slowly: a second compilation would cost more than it spares.
    """

    module: fx.GraphModule
    report: Report
    examples: list[Tensor]
    rng: Rng
    _once: Runner | None = None
    _many: Runner | None = None

    @property
    def compiled(self) -> bool:
        """Whether it can be called."""
        return self._once is not None or self._many is not None

    def compile(self, steps: int) -> None:
        """Compile it for so many steps in a row.

        :raises sgc.errors.BackendError: if Inductor cannot work on this machine.
        """
        if steps > 1 and self._can_loop:
            examples = [*self.examples, torch.tensor(CAPACITY), self._losses]
            self._many = compile_graph(repeat(self.module), examples, self.rng)
        else:
            self._once = compile_graph(self.module, self.examples, self.rng)
        self.examples = []  # they hold the memory of what may be long gone

    def __call__(self, inputs: Sequence[Tensor], steps: int) -> list[Tensor]:
        """Take at least one step and at most so many.

        :return: the losses, of shape ``[taken]``; and what else the last step returns.
        """
        if self._once is not None:
            loss, *others = self._once(*inputs)
            return [loss.reshape(1), *others]
        assert self._many is not None
        taken = min(steps, CAPACITY)
        losses, *others = self._many(*inputs, torch.tensor(taken), self._losses)
        return [losses[:taken], *others]

    @property
    def _can_loop(self) -> bool:
        memory = [tensor.untyped_storage().data_ptr() for tensor in self.examples if tensor.numel()]
        return len(set(memory)) == len(memory) and all(tensor.device.type == "cpu" for tensor in self.examples)

    @cached_property
    def _losses(self) -> Tensor:
        """Where the losses of a loop would go, were they written in place; only its shape and dtype matter."""
        results = next(node for node in self.module.graph.nodes if node.op == "output").args[0]
        return torch.zeros(CAPACITY, dtype=results[0].meta["val"].dtype)


def build_step(module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng) -> BuiltStep:
    """Rewrite the module of a step (:func:`sgc.emit.step.emit_step`); it is compiled when that is asked for."""
    examples = [tensor.detach() for tensor in tensors]
    optimized = optimize(module, examples, rng=rng)
    return BuiltStep(optimized.module, optimized.report, examples, rng)
