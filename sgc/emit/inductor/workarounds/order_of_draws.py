"""Keeps the draws of a program, and their order, under Inductor, which knows no reason for either.

With ``rng="torch"`` a compiled program must draw the numbers that the eager one draws, and leave the random state that
it leaves. Inductor's scheduler orders operators by their data alone, and drops those whose results nobody reads. So
each draw is given a number before Inductor sees the program, in the user's own entry of a node's meta, which Inductor's
passes hand on to what they make of a node. What a draw is lowered to waits for what the draw before was lowered to, and
has side effects; and when the program is written down the numbers must come in their order, each of them, whichever of
Inductor's passes has done what.

An operator that Inductor calls is two nodes to its scheduler, the call and its result. What waits, waits for the call:
the result is dropped where nobody reads it. Torch has no public way to say any of this: three methods of Inductor
(torch 2.11 to 2.13) are replaced while a program is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect
from torch.utils._pytree import tree_leaves

from sgc.emit.fx.rewriting import call
from sgc.errors import BackendError
from sgc.graph.effects import functionalised_operator, is_random
from sgc.graph.meta_keys import DRAW


def number_draws(module: fx.GraphModule) -> frozenset[int]:
    """Give each draw of a graph its number in the order of the program.

    Somebody's operator that draws and writes into what it is given is dropped by torch where nobody reads that, unless
    torch is told that it has side effects.

    :return: the numbers of all draws but those of no elements, which may be dropped.
    """
    needed = set()
    draws = (node for node in module.graph.nodes if node.op == "call_function" and is_random(node))
    for number, node in enumerate(draws):
        node.meta["custom"] = {**node.meta.get("custom", {}), DRAW: number}
        operator = functionalised_operator(node)
        if operator is not None:
            has_side_effect(operator)
        values = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
        if not values or any(value.numel() != 0 for value in values):
            needed.add(number)
    return frozenset(needed)


@contextmanager
def draws_in_order(needed: frozenset[int]) -> Iterator[None]:
    """While this is entered, what is compiled takes its numbered draws one after another.

    :param needed: the numbers of those that must be there.
    :raises sgc.errors.BackendError: if a program would not; torch wraps it into an error of its own.
    """
    from torch._inductor.graph import GraphLowering, SubgraphLowering
    from torch._inductor.scheduler import Scheduler
    from torch._inductor.virtualized import V

    run_node, call_operator, write = GraphLowering.run_node, Scheduler.codegen_extern_call, Scheduler.codegen
    latest: dict[GraphLowering, Any] = {}
    called: list[int] = []

    def lower(self: Any, node: fx.Node) -> Any:
        before = len(self.operations)
        lowered = run_node(self, node)
        for operation in self.operations[before:]:
            # What is lowered within another node has its number before that one is done.
            if _draws(operation) and not hasattr(operation, DRAW):
                setattr(operation, DRAW, node.meta.get("custom", {}).get(DRAW, -1))
                operation.has_side_effects = lambda: True
                if self in latest:
                    self.additional_buffer_deps[operation.operation_name].add(latest[self].get_name())
                latest[self] = operation
        return lowered

    def call_in_order(self: Any, node: Any) -> None:
        if hasattr(node.node, DRAW):
            called.append(getattr(node.node, DRAW))
        call_operator(self, node)

    def write_in_order(self: Any) -> None:
        if isinstance(V.graph, SubgraphLowering):
            write(self)
            return
        called.clear()
        write(self)
        order = [number for number, _ in groupby(called)]
        if not needed.issubset(order) or any(later <= earlier for earlier, later in pairwise([-1, *order])):
            raise BackendError(
                f"Inductor of torch {torch.__version__} does not take the draws of the program in their order: "
                f"draws {sorted(needed)} as {called}",
                remedy='use rng="fast", where the order is of no importance, or backend="eager"; and please report it',
            )

    with (
        mock.patch.object(GraphLowering, "run_node", lower),
        mock.patch.object(Scheduler, "codegen_extern_call", call_in_order),
        mock.patch.object(Scheduler, "codegen", write_in_order),
    ):
        yield


def _draws(operation: Any) -> bool:
    """Whether what Inductor has lowered something to is a call of an operator that draws."""
    operator = getattr(operation, "op_overload", None)
    return isinstance(operator, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operator.tags


def draw_as_torch(module: fx.GraphModule) -> None:
    """Let torch draw what Inductor would draw otherwise, or at another place.

    For Bernoulli numbers Inductor compares uniform numbers of float32 with the probability. Those are the numbers that
    torch's operator compares with it on a CPU, unless the probability is of float64; on a GPU they are others. Of the
    operator that fills a given tensor Inductor makes nothing else. It fills that in the order of its memory, and
    ``bernoulli`` draws row by row.

    Of a slice of a permutation that something is indexed by, a subsample, Inductor makes another permutation, drawn
    where it is used. It does so only where ``pin_memory`` is False, which is what None means.
    """
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.randperm.default):
        node.kwargs = {**node.kwargs, "pin_memory": None}
    for node in module.graph.find_nodes(op="call_function", target=_BERNOULLI):
        value, probability = node.meta["val"], node.args[0]
        if node.kwargs or (value.device.type == "cpu" and value.dtype is not torch.float64):
            continue
        rows = call(node, torch.ops.aten.zeros_like.default, probability, memory_format=torch.contiguous_format)
        node.target = torch.ops.aten.bernoulli.Tensor
        node.args = (rows, probability)
    module.recompile()


_BERNOULLI = torch.ops.aten.bernoulli.default
