"""Runs many small operators of one kind as one operator on stacked operands.

A program that is unrolled over time, or a sequential plate, has hundreds of operators on a few numbers each; both
Inductor's time to compile and the time of a step grow with their number. This pass groups them: sums first
(:mod:`~sgc.emit.rewrites.batching.reduce_sums`), then the schedule (:mod:`~sgc.emit.rewrites.batching.agenda`), then
the new graph, which is the trace of one run of the schedule (:mod:`~sgc.emit.rewrites.batching.execute`).
"""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from sgc.config import Rng
from sgc.emit.fx.lazy_modules import graph_module
from sgc.emit.fx.recorded_operators import record
from sgc.emit.fx.rewriting import attribute, mark_literal
from sgc.emit.rewrites.batching.agenda import Agenda
from sgc.emit.rewrites.batching.execute import Execution, pack
from sgc.emit.rewrites.batching.operations import LARGEST, tensor_of
from sgc.emit.rewrites.batching.reduce_sums import reduce_sums
from sgc.graph.effects import drop_dead, storages, written_arguments

aten = torch.ops.aten


def batch(module: fx.GraphModule, *, rng: Rng) -> tuple[fx.GraphModule, bool]:
    """A module that computes the same with fewer operators, and whether it is another; the given one is not changed.

    Additions of many terms are reassociated, so results may differ in their last digits. With ``rng="fast"``, draws
    of one law become one draw of their joint law, so other numbers are drawn; with ``rng="torch"``, random operators
    stay as they are, in their order.

    :param module: a graph of aten operators with fake values (``meta["val"]``), that returns a list of tensors and
        writes into nothing but its inputs, by ``copy_``, at its end. A graph that is not so is left as it is.
    """
    if not _is_functional(module.graph):
        return module, False
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    reduced = reduce_sums(graph, rng)
    drop_dead(graph)
    steps = Agenda([node for node in graph.nodes if _is_scheduled(node)], rng).steps()
    if not reduced and all(len(step) == 1 for step in steps):
        return module, False
    made = _execute(graph_module(module, graph), steps)
    return (made, True) if _operators(made) < _operators(module) else (module, False)


def batch_small_operators(module: fx.GraphModule, rng: Rng) -> bool:
    """Apply :func:`batch` to a module in place; returns whether it changed."""
    made, changed = batch(module, rng=rng)
    if changed:
        for node in made.graph.find_nodes(op="get_attr"):
            value, name = operator.attrgetter(str(node.target))(made), f"batched_{node.name}"
            setattr(module, name, value)
            node.target = name
        module.graph = made.graph
    return changed


def _is_scheduled(node: fx.Node) -> bool:
    return node.op == "call_function" and not written_arguments(node)


def _execute(module: fx.GraphModule, steps: list[list[fx.Node]]) -> fx.GraphModule:
    nodes = list(module.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    constants = {node: operator.attrgetter(str(node.target))(module) for node in nodes if node.op == "get_attr"}
    rows = pack({node: value for node, value in constants.items() if value.numel() <= LARGEST})
    writes = [node for node in nodes if node.op == "call_function" and written_arguments(node)]
    results = cast("list[fx.Node]", module.graph.output_node().args[0])

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        execution = Execution({**constants, **dict(zip(placeholders, inputs, strict=True))}, rows)
        for group in steps:
            execution.run(group)
        # Everything is computed before anything is written; a row is read from its packet when it is asked for.
        returned = [execution.value(result) for result in results]
        for argument in {argument for node in writes for argument in node.all_input_nodes}:
            execution.value(argument)
        for node in writes:
            execution.run([node])
        return returned

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        examples = [_like(node) for node in placeholders]
    made = record(run, examples)
    for node, original in zip(made.graph.find_nodes(op="placeholder"), placeholders, strict=True):
        node.meta = {**original.meta, "val": node.meta["val"]}
    for node in made.graph.find_nodes(op="call_function", target=aten.lift_fresh_copy.default):
        mark_literal(attribute(node.args[0]))
        node.replace_all_uses_with(node.args[0])
    drop_dead(made.graph)
    made.graph.lint()
    made.recompile()
    return made


def _like(placeholder: fx.Node) -> torch.Tensor:
    value = tensor_of(placeholder)
    assert value is not None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _is_functional(graph: fx.Graph) -> bool:
    """Whether the contract of :func:`batch` holds."""
    written: set[int] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if tensor_of(node) is None:
                return False
        elif node.op == "output":
            results = node.args[0]
            if not isinstance(results, (list, tuple)) or not all(isinstance(result, fx.Node) for result in results):
                return False
            # A result that shares storage with what is written might be a copy afterwards, made before the write.
            return not any(storages(result) & written for result in results)
        elif node.op == "call_function":
            if not isinstance(node.target, torch._ops.OpOverload) and node.target is not operator.getitem:
                return False
            if node.target is aten.as_strided.default:
                return False  # it reads the strides of its operand, which are others in a stack
            targets = written_arguments(node)
            if targets and (node.target is not aten.copy_.default or targets[0].op != "placeholder" or node.users):
                return False
            if written and not targets:
                return False
            for target in targets:
                written |= storages(target)
        elif node.op != "get_attr":
            return False
    return False


def _operators(module: fx.GraphModule) -> int:
    return sum(node.op == "call_function" for node in module.graph.nodes)
