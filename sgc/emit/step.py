"""Emits the module of a whole training step: loss, gradients, and the optimizer's update, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import Differentiated, trace
from sgc.emit.optimize.nodes import writes
from sgc.graph.effects import storages

Update = Callable[[list[Tensor], list[Tensor], list[Tensor]], None]
"""``update(parameters, gradients, state)`` writes into the parameters and into the optimizer's state."""


def emit_step(
    differentiated: Differentiated, tensors: Sequence[Tensor], state: Sequence[Tensor], update: Update
) -> fx.GraphModule:
    """The module ``(*tensors, *state, halted) -> [loss]`` of one step.

    A step whose loss is NaN writes nothing but ``halted``, a 0-d bool tensor, and after it no step writes anything:
    so parameters, state and buffers stay as they were before it, however late the host looks at the loss.

    :param differentiated: computes ``[loss, *gradients]`` of ``tensors``.
    :param tensors: examples of its inputs.
    :param state: examples of what the update reads and writes besides the parameters.
    :param update: the optimizer.
    """
    count = len(tensors)
    hidden = _written_inputs(differentiated.module)

    def step(*inputs: Tensor) -> list[Tensor]:
        *written, halted = inputs
        versions = [tensor._version for tensor in written]
        before = [tensor.clone() for tensor in written]
        loss, *gradients = differentiated.module(*inputs[:count])
        parameters = [inputs[i].detach() for i in differentiated.gradient_of]
        with torch.no_grad():
            update(parameters, gradients, list(inputs[count:-1]))
            halt = halted | loss.isnan()
            for position, (tensor, version, old) in enumerate(zip(written, versions, before, strict=True)):
                if tensor._version != version or position in hidden:
                    tensor.copy_(torch.where(halt, old, tensor))
            halted.copy_(halt)
        return [loss]

    return trace(step, [*tensors, *state, new_flag(differentiated.device)])


def new_flag(device: torch.device) -> Tensor:
    """A ``halted`` that is not set."""
    return torch.zeros((), dtype=torch.bool, device=device)


def _written_inputs(module: fx.GraphModule) -> set[int]:
    """The positions of the inputs that a module writes into; batch norm's statistics show no new version."""
    touched = {storage for node in module.graph.nodes for argument in writes(node) for storage in storages(argument)}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    return {position for position, node in enumerate(placeholders) if storages(node) & touched}
