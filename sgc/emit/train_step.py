"""Emits the module of a whole training step: loss, gradients, and the optimizer's update, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.differentiate import Differentiated, trace
from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.rewriting import attribute, results_of, value_of
from sgc.emit.rewrites.functionalise import functionalise
from sgc.emit.rollback import Writes, written_inputs
from sgc.graph.meta_keys import IS_GRADIENT

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
    flag = new_flag(differentiated.device)
    count, hidden = len(tensors), written_inputs(differentiated.module)
    if not hidden:
        return _appended(differentiated, state, flag, update)
    results: list[Tensor] = []

    def step(*inputs: Tensor) -> list[Tensor]:
        done = Writes(inputs[:-1], hidden)
        results[:] = differentiated.module(*inputs[:count])
        own = _finish(differentiated, results, inputs, list(inputs[count:-1]), inputs[-1], update, done)
        return [*own, *results]

    traced = trace(step, [*tensors, *state, flag])
    returned = results_of(traced)
    own = len(returned) - len(results)
    _mark(returned[own:][1 : 1 + len(differentiated.gradient_of)])
    traced.graph.output_node().args = (returned[:own],)
    traced.recompile()
    return traced


def _finish(
    differentiated: Differentiated,
    results: Sequence[Tensor],
    inputs: Sequence[Tensor],
    state: list[Tensor],
    halted: Tensor,
    update: Update,
    done: Writes,
) -> list[Tensor]:
    """What a step does after loss and gradients are there."""
    given, halt = updated(differentiated, results, inputs, state, halted, update)
    with torch.no_grad():
        done.undo_where(halt)
        halted.copy_(halt)
    return given


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


def _appended(differentiated: Differentiated, state: Sequence[Tensor], flag: Tensor, update: Update) -> fx.GraphModule:
    """The step of a module that writes into no input: a copy of its graph, and behind it the rest, traced by itself."""
    before, given = differentiated.module.graph, results_of(differentiated.module)
    inputs = before.find_nodes(op="placeholder")

    def rest(*tensors: Tensor) -> list[Tensor]:
        results, others = tensors[: len(given)], tensors[len(given) :]
        held, own = others[: len(inputs)], list(others[len(inputs) : -1])
        done = Writes(others[:-1], set())
        return _finish(differentiated, results, held, own, others[-1], update, done)

    examples = [value_of(node) for node in (*given, *inputs)]
    behind = trace(rest, [*examples, *state, flag])
    functionalise(behind)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.node_copy(node)
    new = behind.graph.find_nodes(op="placeholder")
    for node in new[len(examples) :]:
        copies[node] = graph.node_copy(node)
    graph.graph_copy(before, copies)
    copies.update(zip(new, (copies[node] for node in (*given, *inputs)), strict=False))
    attributes: dict[str, Any] = {str(node.target): attribute(node) for node in before.find_nodes(op="get_attr")}
    for node in behind.graph.find_nodes(op="get_attr"):
        name = f"update_{node.target}"
        attributes[name] = attribute(node)
        copies[node] = graph.get_attr(name)
        copies[node].meta.update(node.meta)
    graph.output(graph.graph_copy(behind.graph, copies))
    _mark([copies[node] for node in given[1 : 1 + len(differentiated.gradient_of)]])
    return graph_module(attributes, graph)


def _mark(gradients: Sequence[fx.Node]) -> None:
    for node in gradients:
        IS_GRADIENT.put(node, True)


def new_flag(device: torch.device) -> Tensor:
    """A ``halted`` that is not set."""
    return torch.zeros((), dtype=torch.bool, device=device)
