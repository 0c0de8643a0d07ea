"""Emits the module that takes many steps in one call: the step as the body of a loop inside the compiled graph.

What a step writes is carried from one turn of the loop to the next and written into the inputs once, at the end. What
the step computes as the rows of one tensor (moments of many small parameters, once their updates are batched) is
carried as that tensor.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sgc.emit.optimize.nodes import attribute, is_final_copy, literal, same_kind
from sgc.emit.optimize.purity import is_view
from sgc.graph.effects import drop_dead, storages

_aten = torch.ops.aten

CAPACITY = 1000
"""The most steps that one call takes: it returns as many losses, of which the first ``count`` are of steps."""


@dataclass(frozen=True)
class _Carried:
    """An input that the step writes with its ``result``, or several with the rows of it."""

    inputs: tuple[fx.Node, ...]
    result: fx.Node
    rows: bool


def repeat(step: fx.GraphModule) -> fx.GraphModule:
    """The module ``(*inputs, count, losses) -> [losses, *others]`` that runs ``step(*inputs) -> [loss, *others]``.

    ``count`` says how often: a 0-d int64 tensor on the CPU, at most the length of ``losses``, a tensor of one dimension
    that is not read. ``others`` are those of the last step, zeros if there was none. The random numbers are those of as
    many calls of ``step``.

    :param step: functional, but for copies into inputs at its end, as the optimisation passes leave it.
    """
    inputs = [node for node in step.graph.nodes if node.op == "placeholder"]
    results = {node.args[0]: node.args[1] for node in step.graph.nodes if is_final_copy(node)}
    carried = _carried(results)
    owned = {str(node.target): node for node in step.graph.nodes if node.op == "get_attr"}
    fixed = [*(node for node in inputs if node not in results), *owned.values()]
    _, *others = _results(step)

    root = torch.nn.Module()
    for position, node in enumerate(owned.values()):
        # Literals may be views of one another, which a loop does not take; nobody else holds them: a copy will do.
        tensor = literal(node)
        owner = attribute(node) if tensor is None else tensor.clone()
        root.register_buffer(f"owned_{position}", owner, persistent=False)
    root.more = _condition(len(others) + len(carried), len(fixed))
    root.body = _body(step, carried, fixed)

    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    count, losses = graph.placeholder("count"), graph.placeholder("losses")
    copies |= {node: graph.get_attr(f"owned_{position}") for position, node in enumerate(owned.values())}
    start = [_zeros(graph, torch.empty((), dtype=torch.int64)), losses]
    start += [_zeros(graph, node.meta["val"]) for node in others]
    for unit in carried:
        values = [copies[node] for node in unit.inputs]
        if unit.rows:
            values = [graph.call_function(_aten.stack.default, (values,))]
            values[0].meta["val"] = unit.result.meta["val"]
        start += values
    turns = (graph.get_attr("more"), graph.get_attr("body"), tuple(start), (count, *(copies[node] for node in fixed)))
    loop = graph.call_function(torch.ops.higher_order.while_loop, turns)
    ends = [graph.call_function(operator.getitem, (loop, position)) for position in range(1, len(start))]
    returned, finals = ends[: 1 + len(others)], ends[1 + len(others) :]
    for unit, last in zip(carried, finals, strict=True):
        for row, node in enumerate(unit.inputs):
            value = graph.call_function(_aten.select.int, (last, 0, row)) if unit.rows else last
            graph.call_function(_aten.copy_.default, (copies[node], value))
    graph.output(returned)
    return fx.GraphModule(root, graph)


def _zeros(graph: fx.Graph, like: torch.Tensor) -> fx.Node:
    return graph.call_function(_aten.full.default, (list(like.shape), 0), {"dtype": like.dtype, "device": like.device})


def _results(step: fx.GraphModule) -> list[fx.Node]:
    """What a step returns."""
    returned: Any = next(node for node in step.graph.nodes if node.op == "output").args[0]
    return list(returned)


def _carried(results: dict[fx.Node, fx.Node]) -> list[_Carried]:
    """The inputs that the step writes, those together that it writes with all rows of one tensor."""
    rows: dict[fx.Node, dict[int, fx.Node]] = {}
    for node, result in results.items():
        if result.target is _aten.select.int:
            whole, dim, row = _arguments(result)
            if dim == 0:
                rows.setdefault(whole, {}).setdefault(row, node)
    units = []
    for whole, nodes in rows.items():
        inputs = tuple(nodes[row] for row in sorted(nodes))
        complete = sorted(nodes) == list(range(whole.meta["val"].shape[0]))
        if complete and not is_view(whole) and all(same_kind(n.meta["val"], inputs[0].meta["val"]) for n in inputs):
            if same_kind(inputs[0].meta["val"], results[inputs[0]].meta["val"]):
                units.append(_Carried(inputs, whole, rows=True))
    together = {node for unit in units for node in unit.inputs}
    return [*units, *(_Carried((node,), result, False) for node, result in results.items() if node not in together)]


def _condition(carried: int, fixed: int) -> fx.GraphModule:
    """``(turn, losses, *carried, count, *fixed) -> turn < count``; the others of the last step count as carried."""
    graph = fx.Graph()
    turn, _losses, *_carried = (graph.placeholder(f"carried_{i}") for i in range(carried + 2))
    count, *_fixed = (graph.placeholder(f"fixed_{i}") for i in range(fixed + 1))
    graph.output((graph.call_function(_aten.lt.Tensor, (turn, count)),))
    return fx.GraphModule(torch.nn.Module(), graph)


def _body(step: fx.GraphModule, carried: list[_Carried], fixed: list[fx.Node]) -> fx.GraphModule:
    """``(turn, losses, *others, *carried, count, *fixed) -> (turn + 1, losses, *others, *carried)`` after one step."""
    graph = fx.Graph()
    loss, *others = _results(step)
    turn, losses, *_others = (graph.placeholder(f"turn_{i}") for i in range(2 + len(others)))
    before = [graph.placeholder(unit.inputs[0].name) for unit in carried]
    graph.placeholder("count")
    copies = {node: graph.placeholder(node.name) for node in fixed}
    shared = {str(node.target): copy for node, copy in copies.items() if node.op == "get_attr"}
    for unit, value in zip(carried, before, strict=True):
        for row, node in enumerate(unit.inputs):
            copies[node] = graph.call_function(_aten.select.int, (value, 0, row)) if unit.rows else value
    place = {
        n: (value, row) for u, value in zip(carried, before, strict=True) for row, n in enumerate(u.inputs) if u.rows
    }
    for node in step.graph.nodes:
        if node in copies or node.op == "output" or is_final_copy(node):
            continue
        if node.op == "get_attr":
            copies[node] = shared[str(node.target)]
            continue
        parts = list(_runs(node, place))
        if parts:
            slices = [graph.call_function(_aten.slice.Tensor, (value, 0, *ends)) for value, *ends in parts]
            copies[node] = graph.call_function(_aten.cat.default, (slices,)) if len(slices) > 1 else slices[0]
        else:
            copies[node] = graph.node_copy(node, lambda argument: copies[argument])
        copies[node].meta.update(node.meta)
    written = graph.call_function(_aten.index_put.default, (losses, [turn], copies[loss]))
    following = graph.call_function(_aten.add.Tensor, (turn, 1))
    finals = [(node, copies[node]) for node in others]
    for unit, old in zip(carried, before, strict=True):
        value = copies[unit.result]
        if not unit.rows and not same_kind(unit.result.meta["val"], unit.inputs[0].meta["val"]):
            value = graph.call_function(_aten.copy.default, (old, value))
        finals.append((unit.result, value))
    graph.output((following, written, *_with_own_memory(graph, finals, copies, turn)))
    drop_dead(graph)
    return fx.GraphModule(step, graph)


def _runs(node: fx.Node, place: dict[fx.Node, tuple[fx.Node, int]]) -> Iterator[tuple[fx.Node, int, int]]:
    """What a stack of rows is a concatenation of: slices of tensors that hold them in this order. Else nothing."""
    if node.target is not _aten.stack.default:
        return
    operands, *dim = _arguments(node)
    if any(dim) or not all(operand in place for operand in operands):
        return
    rows = [place[operand] for operand in operands]
    # Rows of one tensor that follow one another differ from their position in the stack by the same number.
    runs = itertools.groupby(enumerate(rows), key=lambda entry: (entry[1][0], entry[1][1] - entry[0]))
    found = [[row for _, row in run] for _, run in runs]
    if 2 * len(found) <= len(rows):
        yield from ((run[0][0], run[0][1], run[-1][1] + 1) for run in found)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _with_own_memory(
    graph: fx.Graph, results: Sequence[tuple[fx.Node, fx.Node]], copies: dict[fx.Node, fx.Node], turn: fx.Node
) -> list[fx.Node]:
    """The results, of which each node of the step comes with its value in the body, no two in the same memory.

    Inductor (torch 2.13) drops a plain copy of a view, and adds the offset of a view that is carried twice. A choice
    between the view and itself is a kernel of its own, or part of one.
    """
    always = graph.call_function(_aten.ge.Scalar, (turn, 0))
    taken = {storage for node in copies for storage in storages(node) if node.op in ("placeholder", "get_attr")}
    owned = []
    for node, value in results:
        if is_view(node) or storages(node) & taken:
            value = graph.call_function(_aten.where.self, (always, value, value))
        taken |= storages(node)
        owned.append(value)
    return owned
