"""Distinguishes the operators of a loop body, so that each is a group of its own.

Signatures alone would put every addition of two numbers into one group. Its operands would then be scattered over the
results of many groups, and it would never be known when to stop waiting for more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

import torch
from torch import fx

from sgc.config import Rng
from sgc.emit.rewrites.batching.operations import is_batchable, leaves, row_of, signature, tensor_of

aten = torch.ops.aten

_PRODUCTS = {aten.mm.default, aten.addmm.default}

CONTEXT = 2
"""How many operators back the operands count. More distinguishes more, and loses more at the ends of a loop."""


SMALLEST = 4
"""The fewest members of a group that saves more than its stacks and selects cost."""


def roles(nodes: list[fx.Node], rng: Rng) -> tuple[dict[fx.Node, int], set[int]]:
    """The roles of the nodes that may be members of a group, and those roles whose nodes wait for one another.

    Nodes of one role have one signature, and so have their operands, :data:`CONTEXT` steps back. Where nodes of a role
    depend on others of it, these and the independent ones are two roles.

    :param nodes: in topological order.
    """
    role = _places(nodes, rng)
    above = _reached(nodes, role, lambda node: node.all_input_nodes)
    below = _reached(nodes[::-1], role, lambda node: list(node.users))
    numbers: dict[tuple[int, bool], int] = {}
    split: dict[fx.Node, int] = {}
    for node, number in role.items():
        chained = bool((above[node] | below[node]) >> number & 1)
        split[node] = numbers.setdefault((number, chained), len(numbers))
    return split, {number for (_, chained), number in numbers.items() if chained}


def _places(nodes: list[fx.Node], rng: Rng) -> dict[fx.Node, int]:
    sign: dict[fx.Node, Hashable] = {node: signature(node) for node in nodes if is_batchable(node, rng)}

    _tell_operands_apart(sign)
    often = Counter(sign.values())

    def kind(node: fx.Node) -> Hashable:
        row = row_of(node)
        if row is not None and often[sign.get(row[0])] < SMALLEST:
            return "row", row[:2]  # of one tensor, whichever
        if node in sign:
            return sign[node]
        value = tensor_of(node)
        target = node.target if node.op == "call_function" else None
        return node.op, target, None if value is None else tuple(value.shape)

    seen = dict.fromkeys([*(used for node in nodes for used in node.all_input_nodes), *nodes])
    numbers: dict[Hashable, int] = {}
    role = {node: numbers.setdefault(kind(node), len(numbers)) for node in seen}
    for _ in range(CONTEXT):
        numbers = {}
        refined = {}
        for node in seen:
            operands = tuple(role[operand] for operand in leaves(node) if operand in role)
            refined[node] = numbers.setdefault((role[node], operands), len(numbers))
        role = refined
    numbers = {}
    return {node: numbers.setdefault((role[node], own), len(numbers)) for node, own in sign.items()}


def _tell_operands_apart(sign: dict[fx.Node, Hashable]) -> None:
    """Part matrix products of one signature by an operand, where each that occurs is that of a group by itself.

    One product of many rows with one matrix is faster than many products, each with a copy of its matrix.
    """
    alike: dict[Hashable, list[fx.Node]] = defaultdict(list)
    for node, own in sign.items():
        if node.target in _PRODUCTS:
            alike[own].append(node)
    for own, nodes in alike.items():
        for place in (-1, -2):
            often = Counter(node.args[place] for node in nodes)
            if min(often.values()) >= SMALLEST:
                sign |= {node: (own, node.args[place]) for node in nodes}
                break


def _reached(
    nodes: list[fx.Node], role: dict[fx.Node, int], near: Callable[[fx.Node], list[fx.Node]]
) -> dict[fx.Node, int]:
    """For each node the roles of the nodes that it reaches by ``near``, as bits of a number."""
    reached: dict[fx.Node, int] = defaultdict(int)
    for node in nodes:
        for other in near(node):
            reached[node] |= reached[other] | (1 << role[other] if other in role else 0)
    return reached
