"""Keeps the draws of a program, and their order, under Inductor, which knows no reason for either.

With ``rng="torch"`` a compiled program must draw the numbers that the eager one draws, and leave the random state that
it leaves; so must one, with ``rng="fast"`` too, that takes the place of its graph run operator by operator. Inductor's
scheduler orders operators by their data alone, and drops those whose results nobody reads. So each draw is given a
number before Inductor sees the program, in the user's own entry of a node's meta, which Inductor's passes hand on to
what they make of a node. What a draw is lowered to waits for what the draw before was lowered to, and has side effects;
and when the program is written down the numbers must come in their order, each of them, whichever of Inductor's passes
has done what.

An operator that Inductor calls is two nodes to its scheduler, the call and its result. What waits, waits for the call:
the result is dropped where nobody reads it. Torch has no public way to say any of this: three methods of Inductor
(torch 2.11 to 2.13) are replaced while a program is compiled. Only that nodes of the graph are not moved beforehand
(``reorder_for_locality``) is an option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect
from torch.utils._pytree import tree_leaves

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.errors import BackendError
from sgc.graph.effects import functionalised_operator, is_random
from sgc.graph.meta_keys import DRAW
from sgc.native.private_attributes import private, replaced

_NEEDED = "sgc_needed_draws"


class DrawsInOtherOrder(BackendError):
    """What Inductor has made of a program does not take its draws in their order."""


def number_draws(module: fx.GraphModule) -> None:
    """Give each draw of a graph its number in the order of the program, in place.

    A custom operator that draws and writes into its argument is dropped by torch where nobody reads that, unless torch
    is told that it has side effects. A draw of no elements may be dropped.
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
    module.meta[_NEEDED] = frozenset(needed)


@contextmanager
def draws_in_order(module: fx.GraphModule, *, kept: bool = True) -> Iterator[None]:
    """While this is entered, what is compiled takes its numbered draws one after another.

    :param module: a graph whose draws have numbers.
    :param kept: whether Inductor is made to do so; else it is only looked whether it does.
    :raises DrawsInOtherOrder: if a program would not; torch wraps it into an error of its own.
    """
    needed: frozenset[int] = module.meta[_NEEDED]
    virtualized = private("torch._inductor.virtualized:V")
    part_of_graph = private("torch._inductor.graph:SubgraphLowering")
    latest: dict[Any, Any] = {}
    called: list[int] = []

    def with_numbers(run_node: Callable[..., Any]) -> Callable[..., Any]:
        def lower(self: Any, node: fx.Node) -> Any:
            before = len(self.operations)
            lowered = run_node(self, node)
            for operation in self.operations[before:]:
                # What is lowered within another node has its number before that one is done.
                if _draws(operation) and not hasattr(operation, DRAW):
                    setattr(operation, DRAW, node.meta.get("custom", {}).get(DRAW, -1))
                    if not kept:
                        continue
                    operation.has_side_effects = lambda: True
                    if self in latest:
                        self.additional_buffer_deps[operation.operation_name].add(latest[self].get_name())
                    latest[self] = operation
            return lowered

        return lower

    def with_notes(call_operator: Callable[..., None]) -> Callable[..., None]:
        def call_in_order(self: Any, node: Any) -> None:
            if hasattr(node.node, DRAW):
                called.append(getattr(node.node, DRAW))
            call_operator(self, node)

        return call_in_order

    def with_check(write: Callable[..., None]) -> Callable[..., None]:
        def write_in_order(self: Any) -> None:
            if isinstance(virtualized.graph, part_of_graph):
                write(self)
                return
            called.clear()
            write(self)
            _check(called, needed)

        return write_in_order

    with replaced(
        {
            "torch._inductor.graph:GraphLowering.run_node": with_numbers,
            "torch._inductor.scheduler:Scheduler.codegen_extern_call": with_notes,
            "torch._inductor.scheduler:Scheduler.codegen": with_check,
        }
    ):
        yield


def _check(called: list[int], needed: frozenset[int]) -> None:
    order = [number for number, _ in groupby(called)]
    if not needed.issubset(order) or any(later <= earlier for earlier, later in pairwise([-1, *order])):
        raise DrawsInOtherOrder(
            f"Inductor of torch {torch.__version__} does not take the draws of the program in their order: "
            f"draws {sorted(needed)} as {called}",
            remedy='use rng="fast", where the order is of no importance, or backend="eager"; and please report it',
        )


def _draws(operation: Any) -> bool:
    """Whether what Inductor has lowered something to is a call of an operator that draws."""
    operator = getattr(operation, "op_overload", None)
    return isinstance(operator, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operator.tags


def _unread(x: Tensor) -> list[Tensor]:
    torch.empty(3).exponential_()
    noise = torch.rand(2)
    large = torch.rand(1000) * noise[0]  # whose memory is better free before the others are there
    return [x + large.sum(), noise, torch.rand(3)]


WORKAROUND = Workaround(
    name="order_of_draws",
    defect="with fallback_random, draws are taken in another order, and those that nobody reads are left out",
    reported="https://github.com/pytorch/pytorch/issues/181136, https://github.com/pytorch/pytorch/pull/176842",
    seen=("2.11", "2.13"),
    programs=[MinimalProgram(_unread, lambda: [torch.ones(2)])],
    rewrite=number_draws,
    options={"reorder_for_locality": False},
    patch=draws_in_order,
    only_if=lambda compilation: compilation.draws == "ordered",
)
