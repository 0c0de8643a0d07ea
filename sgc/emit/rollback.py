"""Takes back, within a traced call, what it has written into its inputs: where it was not valid, say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import trace
from sgc.graph.effects import written_placeholders


class Writes:
    """What is written into some inputs from now on.

    :param hidden: the positions of those that are written into whatever their version says.
    """

    def __init__(self, inputs: Sequence[Tensor], hidden: set[int]) -> None:
        self._inputs = inputs
        self._hidden = hidden
        self._versions = [tensor._version for tensor in inputs]
        self._before = [tensor.clone() for tensor in inputs]

    def undo_where(self, condition: Tensor, *, hidden_alone: bool = False) -> None:
        """Put back what was there before, if a 0-d condition holds.

        :param hidden_alone: only into the ``hidden`` ones: the version of a view of one is new, too, and it need not be
            one that can be written.
        """
        for i, (tensor, old) in enumerate(zip(self._inputs, self._before, strict=True)):
            if i in self._hidden or (not hidden_alone and tensor._version != self._versions[i]):
                tensor.copy_(torch.where(condition, old, tensor))


def rolled_back_if_invalid(module: fx.GraphModule, tensors: list[Tensor]) -> fx.GraphModule:
    """A module whose last result says whether the call was valid, and that writes nothing if it was not."""
    written = written_inputs(module)
    if not written:
        return module

    def step(*inputs: Tensor) -> list[Tensor]:
        done = Writes(inputs, written)
        results: list[Tensor] = module(*inputs)
        with torch.no_grad():
            done.undo_where(~results[-1], hidden_alone=True)
        return results

    return trace(step, tensors)


def written_inputs(module: fx.GraphModule) -> set[int]:
    """The positions of the inputs that a module writes into; batch norm's statistics show no new version."""
    written = written_placeholders(module.graph)
    placeholders = module.graph.find_nodes(op="placeholder")
    return {position for position, node in enumerate(placeholders) if node in written}
