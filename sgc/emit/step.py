"""Emits the module of a whole training step: loss, gradients, and the optimizer's update, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import Differentiated, trace
from sgc.emit.guarded import Writes, written_inputs
from sgc.emit.outline import GRADIENT

Update = Callable[[list[Tensor], list[Tensor], list[Tensor]], None]
"""``update(parameters, gradients, state)`` writes into the parameters and into the optimizer's state."""


def emit_step(
    differentiated: Differentiated, tensors: Sequence[Tensor], state: Sequence[Tensor], update: Update
) -> fx.GraphModule:
    """The module ``(*tensors, *state, halted) -> [loss, valid]`` of one step.

    A step whose loss is NaN or that is not valid writes nothing but ``halted``, a 0-d bool tensor, and after it no step
    writes anything: so parameters, state and buffers stay as they were before it, however late the host looks at the
    loss. The loss of a step that is not valid is given as NaN: the first NaN among losses is where a run halted.

    :param differentiated: computes ``[loss, *gradients]`` of ``tensors``, and ``valid`` if it ``validates``.
    :param tensors: examples of its inputs.
    :param state: examples of what the update reads and writes besides the parameters.
    :param update: the optimizer.
    """
    count = len(tensors)
    hidden = written_inputs(differentiated.module)

    counts: list[int] = []

    def step(*inputs: Tensor) -> list[Tensor]:
        *written, halted = inputs
        done = Writes(written, hidden)
        loss, *gradients = differentiated.module(*inputs[:count])
        valid = [gradients.pop()] if differentiated.validates else []
        parameters = [inputs[i].detach() for i in differentiated.gradient_of]
        with torch.no_grad():
            update(parameters, gradients, list(inputs[count:-1]))
            for holds in valid:
                loss = torch.where(holds, loss, torch.nan)
            halt = halted | loss.isnan()
            done.undo_where(halt)
            halted.copy_(halt)
        counts[:] = [1 + len(valid), len(gradients)]
        return [loss, *valid, *gradients]

    traced = trace(step, [*tensors, *state, new_flag(differentiated.device)])
    own, others = counts
    output = traced.graph.output_node()
    (results,) = output.args
    assert isinstance(results, list) and len(results) == own + others
    for node in results[own:]:
        node.meta[GRADIENT] = True
    output.args = (results[:own],)
    traced.recompile()
    return traced


def new_flag(device: torch.device) -> Tensor:
    """A ``halted`` that is not set."""
    return torch.zeros((), dtype=torch.bool, device=device)
