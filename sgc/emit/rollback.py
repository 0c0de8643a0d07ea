"""Takes back what a module has written into its inputs, where a call was not valid, or a step is to change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import copy_of, insert, results_of
from sgc.graph.effects import written_placeholders


class Writes:
    """What a traced function writes into some inputs from now on."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = inputs
        self._versions = [tensor._version for tensor in inputs]
        self._before = [tensor.clone() for tensor in inputs]

    def undo_where(self, condition: Tensor) -> None:
        """Put back what was there before, if a 0-d condition holds."""
        for tensor, version, old in zip(self._inputs, self._versions, self._before, strict=True):
            if tensor._version != version:
                tensor.copy_(torch.where(condition, old, tensor))


def rolled_back_if_invalid(module: fx.GraphModule) -> fx.GraphModule:
    """A module whose last result says whether the call was valid, and that writes nothing if it was not."""
    if not written_inputs(module):
        return module
    rolled_back = copy_of(module)
    before, output = copies_of_written(rolled_back), rolled_back.graph.output_node()
    invalid = insert(output, torch.ops.aten.bitwise_not.default, results_of(rolled_back)[-1])
    for tensor, old in before.items():
        chosen = insert(output, torch.ops.aten.where.self, invalid, old, tensor)
        insert(output, torch.ops.aten.copy_.default, tensor, chosen)
    return rolled_back


def copies_of_written(module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Copy the inputs that a module writes into, before anything else; the copies by the inputs."""
    placeholders = module.graph.find_nodes(op="placeholder")
    first = next(node for node in module.graph.nodes if node.op != "placeholder")
    written = [placeholders[position] for position in sorted(written_inputs(module))]
    return {tensor: insert(first, torch.ops.aten.clone.default, tensor) for tensor in written}


def written_inputs(module: fx.GraphModule) -> set[int]:
    """The positions of the inputs that a module writes into; batch norm's statistics show no new version."""
    written = written_placeholders(module.graph)
    placeholders = module.graph.find_nodes(op="placeholder")
    return {position for position, node in enumerate(placeholders) if node in written}
