"""Keeps the order in which Bernoulli numbers are drawn into memory, once they are drawn into no memory.

``bernoulli_`` fills a tensor in the order of its memory, which for a transposed one is column by column; dropout is
made of it. Its functional form draws row by row, whatever the layout, and gives the same numbers to other elements.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, is_static, value_of

_aten = torch.ops.aten

_DRAWS = {_aten.bernoulli_.float, _aten.bernoulli_.Tensor}


def draw_in_rows(graph: fx.Graph) -> None:
    """Let Bernoulli numbers be drawn into views whose rows lie in the order of the memory.

    Tensors whose sizes depend on data stay as they are: the order of their memory is not known.
    """
    for node in graph.nodes:
        if node.target not in _DRAWS:
            continue
        (filled,) = node.args[:1]
        assert isinstance(filled, fx.Node)
        order = order_of_memory(value_of(filled))
        if order is not None and _fills_memory_in_order(value_of(filled).device):
            back = [order.index(dim) for dim in range(len(order))]
            rows, probability = call(node, _aten.permute.default, filled, order), node.args[1:2]
            if node.target is _aten.bernoulli_.Tensor:
                wide = call(node, _aten.expand.default, *probability, list(value_of(filled).shape))
                probability = (call(node, _aten.permute.default, wide, order),)
            drawn = call(node, node.target, rows, *probability, **node.kwargs)
            node.replace_all_uses_with(call(node, _aten.permute.default, drawn, back))
            graph.erase_node(node)


def order_of_memory(tensor: Tensor) -> list[int] | None:
    """The dimensions from the farthest apart to the nearest; None where rows lie so as it is, or if it is not known."""
    if not is_static(tensor):
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    long = [dim for dim in order if tensor.shape[dim] > 1]
    return order if long != sorted(long) else None


@functools.cache
def _fills_memory_in_order(device: torch.device) -> bool:
    """Whether ``bernoulli_`` does: MKL, which torch calls on some processors, has an order of its own."""

    def drawn(into: Tensor) -> Tensor:
        return into.bernoulli_(0.5, generator=torch.Generator(device).manual_seed(0))

    memory = [torch.empty(8, 16, device=device) for _ in range(2)]
    return torch.equal(drawn(memory[0].t()), drawn(memory[1]).t())
