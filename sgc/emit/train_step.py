"""Emits the module of a whole training step: loss, gradients, and the optimizer's update, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import Differentiated, trace
from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.rewriting import attribute, copy_of, results_of, value_of
from sgc.emit.rewrites.functionalise import functionalise
from sgc.emit.rollback import Writes, copies_of_written, take_row_writes
from sgc.graph.meta_keys import IS_GRADIENT

Update = Callable[[list[Tensor], list[Tensor], list[Tensor]], None]
"""``update(parameters, gradients, state)`` writes into the parameters and into the optimizer's state."""


def emit_step(differentiated: Differentiated, state: Sequence[Tensor], update: Update) -> fx.GraphModule:
    """The module ``(*tensors, *state, halted) -> [loss, valid]`` of one step.

    A step whose loss is NaN or that is not valid writes nothing but ``halted``, a 0-d bool tensor, and after it no step
    writes anything: so parameters, state and buffers stay as they were before it, however late the host looks at the
    loss. The loss of a step that is not valid is given as NaN: the first NaN among losses is where a run halted.

    :param differentiated: computes ``[loss, *gradients]`` of ``tensors``, and ``valid`` if it ``validates``.
    :param state: examples of what the update reads and writes besides the parameters.
    :param update: the optimizer.
    """
    flag = new_flag(differentiated.device)
    program = copy_of(differentiated.module)
    rows = take_row_writes(program)
    before = copies_of_written(program)
    results, inputs = results_of(program), program.graph.find_nodes(op="placeholder")
    of_rows = [write.given for write in rows]
    given = [*results, *before.values(), *(node for nodes in of_rows for node in nodes), *inputs]
    rewritten = [inputs.index(tensor) for tensor in before]

    def rest(*tensors: Tensor) -> list[Tensor]:
        remaining = iter(tensors)
        computed, old = [*islice(remaining, len(results))], [*islice(remaining, len(before))]
        new_rows = [[*islice(remaining, len(nodes))] for nodes in of_rows]
        *held, halted = remaining
        own = held[len(inputs) :]
        done = Writes(held)
        returned, halt = updated(differentiated, computed, held, own, halted, update)
        with torch.no_grad():
            done.undo_where(halt)
            for position, tensor in zip(rewritten, old, strict=True):
                held[position].copy_(torch.where(halt, tensor, held[position]))
            for write, parts in zip(rows, new_rows, strict=True):
                write.write_unless(halt, held[inputs.index(write.table)], parts)
            halted.copy_(halt)
        return returned

    behind = trace(rest, [*(value_of(node) for node in given), *state, flag])
    functionalise(behind)
    return _appended(program, behind, given, differentiated.gradient_of)


def updated(
    differentiated: Differentiated,
    results: Sequence[Tensor],
    inputs: Sequence[Tensor],
    state: list[Tensor],
    halted: Tensor,
    update: Update,
) -> tuple[list[Tensor], Tensor]:
    """Let the optimizer take the step; what the step gives, and whether what it has written is to be undone.

    :param results: the loss, the gradients, and ``valid`` if ``differentiated`` validates.
    """
    loss, *gradients = results
    valid = [gradients.pop()] if differentiated.validates else []
    parameters = [inputs[i].detach() for i in differentiated.gradient_of]
    with torch.no_grad():
        update(parameters, gradients, state)
        for holds in valid:
            loss = torch.where(holds, loss, torch.nan)
        halt = halted | loss.isnan()
    return [loss, *valid], halt


def _appended(
    program: fx.GraphModule, behind: fx.GraphModule, given: Sequence[fx.Node], gradient_of: Sequence[int]
) -> fx.GraphModule:
    """A copy of the program's graph, and behind it that of what follows.

    :param given: the nodes of the program that are the first inputs of what follows.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    new = behind.graph.find_nodes(op="placeholder")
    for node in [*program.graph.find_nodes(op="placeholder"), *new[len(given) :]]:
        copies[node] = graph.node_copy(node)
    graph.graph_copy(program.graph, copies)
    copies.update(zip(new, (copies[node] for node in given), strict=False))
    attributes: dict[str, Any] = {str(node.target): attribute(node) for node in program.graph.find_nodes(op="get_attr")}
    for node in behind.graph.find_nodes(op="get_attr"):
        name = f"update_{node.target}"
        attributes[name] = attribute(node)
        copies[node] = graph.get_attr(name)
        copies[node].meta.update(node.meta)
    graph.output(graph.graph_copy(behind.graph, copies))
    for node in given[1 : 1 + len(gradient_of)]:
        IS_GRADIENT.put(copies[node], True)
    return graph_module(attributes, graph)


def new_flag(device: torch.device) -> Tensor:
    """A ``halted`` that is not set."""
    return torch.zeros((), dtype=torch.bool, device=device)
