"""Turns long chains of additions into reductions, which the agenda could not group: each waits for the one before.

A chain is ``s_1 = c_0 + c_1``, ``s_2 = s_1 + c_2`` and so on, subtractions too. Where only the last sum is used, it
becomes ``stack(c).sum(0)``, or one product where ``c`` are products (:mod:`~sgc.emit.rewrites.batching.contract`);
where partial sums are used, they become the rows of ``stack(c).cumsum(0)``. All add in another order than the chain.
Gradients of ``x.select(dim, i)`` for many ``i``, which autograd pads with zeros and adds, become one stack.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from sgc.config import Rng
from sgc.emit.rewrites.batching.contract import contract, contracts
from sgc.emit.rewrites.batching.operations import LARGEST, call, predecessors, tensor_of

aten = torch.ops.aten

FEWEST = 8
"""The fewest additions of a chain of numbers that is rewritten."""

FEWEST_OF_TENSORS = 4
"""The fewest additions of a chain of larger tensors that is rewritten."""


@dataclass(frozen=True)
class _Chain:
    """A chain of additions, each of a term to the previous result."""

    nodes: list[fx.Node]

    def terms(self) -> list[tuple[fx.Node, bool]]:
        """The terms, and whether each is subtracted."""
        terms: list[Any] = [(self.nodes[0].args[0], False)]
        for node, before in zip(self.nodes, [self.nodes[0].args[0], *self.nodes], strict=False):
            left, right = node.args
            terms.append((right if left is before else left, node.target is aten.sub.Tensor))
        return terms

    def added(self) -> Iterator[fx.Node]:
        return (term for term, negative in self.terms() if not negative)

    def is_of_small(self) -> bool:
        value = tensor_of(self.nodes[0])
        return value is not None and value.numel() <= LARGEST

    def shows_partial_sums(self) -> bool:
        return any(len(node.users) > 1 for node in self.nodes[:-1])


def reduce_sums(graph: fx.Graph, rng: Rng) -> bool:
    """Rewrite the chains of a functional graph with fake values, in place; returns whether there were any."""
    contracted, others = [], []
    for chain in _chains(graph):
        contracted.append(chain) if _is_contraction(chain) else others.append(chain)
    chains = [*contracted, *_unlike_others([chain for chain in others if chain.is_of_small()])]
    done = [chain for chain in chains if not chain.shows_partial_sums()]
    for chain in done:
        _total(graph, chain)
    for chain in chains:
        if chain not in done:
            # The graph is looked at anew for each: by now a row of one chain may depend on all terms of another.
            for part in _independent_parts(graph, chain, rng):
                _partial_sums(graph, part)
                _sort(graph, rng)
    return bool(chains)


def _is_contraction(chain: _Chain) -> bool:
    return not chain.shows_partial_sums() and contracts(chain.added(), FEWEST_OF_TENSORS)


def _chains(graph: fx.Graph) -> list[_Chain]:
    """Disjoint chains, longest first."""
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
        if len(nodes) >= _fewest(last):
            chains.append(_Chain(nodes[::-1]))
    return chains


def _fewest(addition: fx.Node) -> int:
    value = tensor_of(addition)
    return FEWEST if value is None or value.dim() == 0 else FEWEST_OF_TENSORS


def _is_addition(node: fx.Node) -> bool:
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return False
    value = tensor_of(node)
    if value is None or not value.dtype.is_floating_point:
        return False
    held = [tensor_of(argument) if isinstance(argument, fx.Node) else None for argument in node.args]
    if node.args[0] is node.args[1]:
        return False
    return all(h is not None and h.shape == value.shape and h.dtype is value.dtype for h in held)


def _unlike_others(chains: list[_Chain]) -> Iterator[_Chain]:
    """The chains that the agenda would not group: fewer alike than they are long."""
    alike: dict[Hashable, list[_Chain]] = defaultdict(list)
    for chain in chains:
        value = tensor_of(chain.nodes[0])
        assert value is not None
        alike[len(chain.nodes).bit_length(), value.shape, value.dtype].append(chain)
    for group in alike.values():
        if len(group) < len(group[-1].nodes):
            yield from group


def _independent_parts(graph: fx.Graph, chain: _Chain, rng: Rng) -> list[_Chain]:
    """Cuts a chain where a term depends on an earlier sum: the rows of a ``cumsum`` depend on all of its terms."""
    term_of = dict(zip(chain.nodes, (term for term, _ in chain.terms()[1:]), strict=True))
    latest: dict[fx.Node, int] = {}  # the last of the sums that a node depends on
    number = 0
    cuts = [0]
    for node, before in predecessors(graph.nodes, rng).items():
        if node in term_of:
            if latest.get(term_of[node], -1) >= cuts[-1]:
                cuts.append(number)
            latest[node] = number
            number += 1
        else:
            known = [latest[used] for used in before if used in latest]
            if known:
                latest[node] = max(known)
    parts = [_Chain(chain.nodes[start:stop]) for start, stop in itertools.pairwise([*cuts, len(chain.nodes)])]
    return [part for part in parts if len(part.nodes) >= _fewest(part.nodes[0])]


def _total(graph: fx.Graph, chain: _Chain) -> None:
    last = chain.nodes[-1]
    with graph.inserting_before(last):
        stacks, terms = _unselect(graph, chain.terms())
        subtracted = [term for term, negative in terms if negative]
        products, added = contract(graph, (term for term, negative in terms if not negative), FEWEST_OF_TENSORS)
        total = _sum(graph, [*stacks, *products, *added])
        if subtracted:
            total = call(graph, aten.sub.Tensor, total, _sum(graph, subtracted))
    last.replace_all_uses_with(total)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _partial_sums(graph: fx.Graph, chain: _Chain) -> None:
    with graph.inserting_before(chain.nodes[-1]):
        signed = [call(graph, aten.neg.default, term) if negative else term for term, negative in chain.terms()]
        sums = call(graph, aten.cumsum.default, call(graph, aten.stack.default, signed), 0)
        rows = [call(graph, aten.select.int, sums, 0, position + 1) for position in range(len(chain.nodes))]
    for node, row in zip(chain.nodes, rows, strict=True):
        node.replace_all_uses_with(row)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def _sum(graph: fx.Graph, terms: list[fx.Node]) -> fx.Node:
    value = tensor_of(terms[0])
    if value is not None and value.numel() > LARGEST:
        return functools.reduce(lambda total, term: call(graph, aten.add.Tensor, total, term), terms)
    if len(terms) > 2:
        return call(graph, aten.sum.dim_IntList, call(graph, aten.stack.default, terms), [0])
    return terms[0] if len(terms) == 1 else call(graph, aten.add.Tensor, *terms)


def _unselect(graph: fx.Graph, terms: list[tuple[fx.Node, bool]]) -> tuple[list[fx.Node], list[tuple[fx.Node, bool]]]:
    """Stacks for terms that ``select_backward`` pads with zeros, and the remaining terms."""
    padded: dict[tuple[int, int], dict[int, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    for term, negative in terms:
        place = _padding(term)
        if place is not None and not negative:
            gradient, length, dim, index = place
            padded[length, dim][index].append(gradient)
    dense = {place: gradients for place, gradients in padded.items() if 2 * len(gradients) >= place[0]}
    stacks = []
    for (length, dim), gradients in dense.items():
        zero = call(graph, aten.zeros_like.default, next(iter(gradients.values()))[0])
        rows = [_sum(graph, gradients.get(index, [zero])) for index in range(length)]
        stacks.append(call(graph, aten.stack.default, rows, dim))
    others = []
    for term, negative in terms:
        place = _padding(term)
        if place is None or negative or place[1:3] not in dense:
            others.append((term, negative))
    return stacks, others


def _padding(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """``(x, length, dim, index)`` if the node is ``x`` among ``length`` slices along ``dim``, the others zero."""
    if node.target is not aten.select_backward.default:
        return None
    gradient, sizes, dim, index = cast("tuple[fx.Node, list[int], int, int]", node.args)
    dim %= len(sizes)
    return gradient, sizes[dim], dim, index % sizes[dim]


def _sort(graph: fx.Graph, rng: Rng) -> None:
    """Sort the nodes topologically, as near to the old order as possible."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    waits: dict[fx.Node, int] = {}
    after: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node, before in predecessors(graph.nodes, rng).items():
        waits[node] = len(before)
        for other in before:
            after[other].append(node)
    ready = [(position, node) for node, position in order.items() if waits[node] == 0]
    last = None
    while ready:
        _, node = heapq.heappop(ready)
        if last is not None:
            last.append(node)
        last = node
        for user in after[node]:
            waits[user] -= 1
            if waits[user] == 0:
                heapq.heappush(ready, (order[user], user))
