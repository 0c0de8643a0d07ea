"""Turns long chains of additions into reductions, which the agenda could not group: each waits for the one before.

A chain is ``s_1 = c_0 + c_1``, ``s_2 = s_1 + c_2`` and so on, subtractions too. Where only the last sum is used, it
becomes ``stack(c).sum(0)``; where partial sums are used, they become the rows of ``stack(c).cumsum(0)``. Both add in
another order than the chain. Gradients of ``x.select(dim, i)`` for many ``i``, which autograd pads with zeros and
adds, become one stack.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from sgc.emit.batching.operations import LARGEST, tensor_of

aten = torch.ops.aten

FEWEST = 8
"""Additions in a chain below which it stays as it is."""


@dataclass(frozen=True)
class _Chain:
    """Additions, each of a term to the result of the one before."""

    nodes: list[fx.Node]

    def terms(self) -> list[tuple[fx.Node, bool]]:
        """What is added up, and whether it is subtracted: one more than there are additions."""
        found: list[Any] = [(self.nodes[0].args[0], False)]
        for node, before in zip(self.nodes, [self.nodes[0].args[0], *self.nodes], strict=False):
            left, right = node.args
            found.append((right if left is before else left, node.target is aten.sub.Tensor))
        return found

    def shows_partial_sums(self) -> bool:
        return any(len(node.users) > 1 for node in self.nodes[:-1])


def share_sums(graph: fx.Graph) -> None:
    """Rewrite the chains of a functional graph, whose nodes have fake values, in place."""
    chains = list(_unlike_others(_chains(graph)))
    for chain in chains:
        if not chain.shows_partial_sums():
            _total(graph, chain)
    for chain in chains:
        if chain.nodes[0].graph is graph and chain.shows_partial_sums():
            # The graph is looked at anew for each: by now a row of one chain may depend on all terms of another.
            for part in _independent_parts(graph, chain):
                _partial_sums(graph, part)


def _chains(graph: fx.Graph) -> list[_Chain]:
    """Disjoint chains, the longest first."""
    length: dict[fx.Node, int] = {}
    previous: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if _is_addition(node):
            options = node.args[:1] if node.target is aten.sub.Tensor else node.args
            sums = [option for option in options if option in length]
            if sums:
                previous[node] = max(sums, key=lambda option: length[option])
            length[node] = 1 + (length[previous[node]] if node in previous else 0)
    taken: set[fx.Node] = set()
    chains = []
    for last in sorted(length, key=lambda node: -length[node]):
        nodes: list[fx.Node] = []
        node = last
        while node is not None and node not in taken:
            nodes.append(node)
            node = previous.get(node)
        taken.update(nodes)
        if len(nodes) >= FEWEST:
            chains.append(_Chain(nodes[::-1]))
    return chains


def _is_addition(node: fx.Node) -> bool:
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return False
    value = tensor_of(node)
    if value is None or not value.dtype.is_floating_point or value.numel() > LARGEST:
        return False
    held = [tensor_of(argument) if isinstance(argument, fx.Node) else None for argument in node.args]
    if node.args[0] is node.args[1]:
        return False
    return all(h is not None and h.shape == value.shape and h.dtype is value.dtype for h in held)


def _unlike_others(chains: list[_Chain]) -> Iterator[_Chain]:
    """The chains that stand alone; as many as they are long, or more, the agenda groups step by step."""
    alike: dict[Hashable, list[_Chain]] = defaultdict(list)
    for chain in chains:
        value = tensor_of(chain.nodes[0])
        assert value is not None
        alike[len(chain.nodes).bit_length(), value.shape, value.dtype].append(chain)
    for group in alike.values():
        if len(group) < len(group[-1].nodes):
            yield from group


def _independent_parts(graph: fx.Graph, chain: _Chain) -> list[_Chain]:
    """Cuts a chain where a term depends on an earlier sum: the rows of a ``cumsum`` depend on all of its terms."""
    term_of = dict(zip(chain.nodes, (term for term, _ in chain.terms()[1:]), strict=True))
    latest: dict[fx.Node, int] = {}  # the last of the sums that a node depends on
    number = 0
    cuts = [0]
    for node in graph.nodes:
        if node in term_of:
            if latest.get(term_of[node], -1) >= cuts[-1]:
                cuts.append(number)
            latest[node] = number
            number += 1
        else:
            known = [latest[used] for used in node.all_input_nodes if used in latest]
            if known:
                latest[node] = max(known)
    parts = [_Chain(chain.nodes[start:stop]) for start, stop in itertools.pairwise([*cuts, len(chain.nodes)])]
    return [part for part in parts if len(part.nodes) >= FEWEST]


def _total(graph: fx.Graph, chain: _Chain) -> None:
    last = chain.nodes[-1]
    with graph.inserting_before(last):
        stacks, terms = _unselect(graph, chain.terms())
        subtracted = [term for term, negative in terms if negative]
        total = _sum(graph, [*stacks, *(term for term, negative in terms if not negative)])
        if subtracted:
            total = _call(graph, aten.sub.Tensor, total, _sum(graph, subtracted))
    last.replace_all_uses_with(total)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _partial_sums(graph: fx.Graph, chain: _Chain) -> None:
    with graph.inserting_before(chain.nodes[-1]):
        signed = [_call(graph, aten.neg.default, term) if negative else term for term, negative in chain.terms()]
        sums = _call(graph, aten.cumsum.default, _call(graph, aten.stack.default, signed), 0)
        rows = [_call(graph, aten.select.int, sums, 0, position + 1) for position in range(len(chain.nodes))]
    for node, row in zip(chain.nodes, rows, strict=True):
        node.replace_all_uses_with(row)
    for node in reversed(chain.nodes):
        graph.erase_node(node)
    _sort(graph)


def _sum(graph: fx.Graph, terms: list[fx.Node]) -> fx.Node:
    if len(terms) >= FEWEST:
        return _call(graph, aten.sum.dim_IntList, _call(graph, aten.stack.default, terms), [0])
    total = terms[0]
    for term in terms[1:]:
        total = _call(graph, aten.add.Tensor, total, term)
    return total


def _unselect(graph: fx.Graph, terms: list[tuple[fx.Node, bool]]) -> tuple[list[fx.Node], list[tuple[fx.Node, bool]]]:
    """Stacks of what ``select_backward`` pads with zeros, and the terms that are no such padding."""
    padded: dict[int, dict[int, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    others, stacks = [], []
    for term, negative in terms:
        if term.target is aten.select_backward.default and not negative:
            gradient, sizes, dim, index = cast("tuple[fx.Node, list[int], int, int]", term.args)
            dim %= len(sizes)
            padded[dim][index % sizes[dim]].append(gradient)
            length = sizes
        else:
            others.append((term, negative))
    for dim, gradients in padded.items():
        zero = _call(graph, aten.zeros_like.default, next(iter(gradients.values()))[0])
        rows = [_sum(graph, gradients.get(index, [zero])) for index in range(length[dim])]
        stacks.append(_call(graph, aten.stack.default, rows, dim))
    return stacks, others


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.map_arg(args, lambda argument: argument.meta["val"]))
    return node


def _sort(graph: fx.Graph) -> None:
    """Move nodes behind what they use; of those that might come next, the first in the old order does."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    waits = {node: len(node.all_input_nodes) for node in order}
    ready = [(position, node) for node, position in order.items() if waits[node] == 0]
    last = None
    while ready:
        _, node = heapq.heappop(ready)
        if last is not None:
            last.append(node)
        last = node
        for user in node.users:
            waits[user] -= 1
            if waits[user] == 0:
                heapq.heappush(ready, (order[user], user))
