"""Keeps random operators as they are, and in their order, under Inductor, which knows no reason for either.

With ``rng="torch"`` a compiled program must draw the numbers that the eager one draws. Inductor's scheduler orders
operators by their data alone; a pass of ours, run after all of its own, makes each random operator wait for the one
before. Torch has no public call for such a wait; what Inductor uses itself to order communication is used here.

A draw that nothing reads is kept, except one: the draw of Bernoulli numbers into memory, of which dropout is made. A
method that Inductor asks (torch 2.11 to 2.13) is added while a program is compiled, so that it is kept, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering
from torch.utils._ordered_set import OrderedSet

from sgc.emit.optimize.nodes import call
from sgc.graph.effects import is_random


class RandomOrder(CustomGraphPass):
    """Makes each random operator of a graph depend on the random operator before it."""

    def __call__(self, graph: fx.Graph) -> None:
        draws = [node for node in graph.nodes if node.op == "call_function" and is_random(node)]
        waits = {later: OrderedSet([earlier]) for earlier, later in itertools.pairwise(draws)}
        preserve_node_ordering(graph, waits)

    def uuid(self) -> str:
        """Part of the key of Inductor's cache, beside that of this file (:mod:`sgc.emit.generator`)."""
        return "sgc.emit.ordering"


@contextmanager
def unread_draws() -> Iterator[None]:
    """While this is entered, no draw is dropped."""
    from torch._inductor.ir import InplaceBernoulliFallback

    with mock.patch.object(InplaceBernoulliFallback, "has_side_effects", lambda self: True, create=True):
        yield


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
