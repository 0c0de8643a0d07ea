"""Writes matrix products in the form in which the CPU's library computes them fastest.

MKL goes through a product in vectors along the rows of the result. Rows shorter than a vector (a latent space of ten
dimensions) take it two to four times as long as the transposed product, whose rows are long.

A bias that is given to a product is copied over the whole result first, in a kernel of its own; added afterwards, it
is added by the kernel that reads the result anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sgc.emit.fx.rewriting import call, is_static, replace, value_of

_aten = torch.ops.aten

_PRODUCTS = {_aten.mm.default, _aten.bmm.default}

_TRANSPOSITIONS = {_aten.t.default, _aten.transpose.int}

_VECTOR = 64
"""Bytes of the widest vectors."""

_LONG = 64
"""The fewest terms of each sum for which the gain exceeds the cost of transposing back."""

_WORTH = 2**14
"""The number of multiplications from which a product takes longer than its call."""


def lay_out_products(module: fx.GraphModule) -> bool:
    """Compute narrow products on the CPU as the transposes of wide ones, and add biases by themselves.

    Results may differ in their last digits: a bias is added after the sum, not before it.
    """
    graph = module.graph
    candidates = graph.find_nodes(op="call_function", target=_aten.addmm.default)
    biased = [node for node in candidates if not node.kwargs and _is_of_mkl(node)]
    for node in biased:
        _add_bias_apart(node)
    narrow = [node for node in graph.nodes if node.target in _PRODUCTS and _is_of_mkl(node) and _is_narrow(node)]
    for node in narrow:
        _transpose(node)
    return bool(biased or narrow)


def _is_of_mkl(node: fx.Node) -> bool:
    value = value_of(node)
    of_blas = value.dtype in (torch.float32, torch.float64)
    return of_blas and value.device.type == "cpu" and is_static(value) and torch.backends.mkl.is_available()


def _add_bias_apart(node: fx.Node) -> None:
    bias, left, right = node.args
    # Inductor would make one call of a product and a sum again, if it saw them side by side.
    product = call(node, _aten.unsqueeze.default, call(node, _aten.mm.default, left, right), 0)
    replace(node, call(node, _aten.squeeze.dim, call(node, _aten.add.Tensor, product, bias), 0))


def _is_narrow(node: fx.Node) -> bool:
    left, right = (value_of(operand) for operand in node.args)  # type: ignore[arg-type]
    *batch, rows, common = left.shape
    columns = right.shape[-1]
    wide = _VECTOR // left.itemsize
    return columns < wide <= rows and common >= _LONG and (bool(batch) or rows * common * columns >= _WORTH)


def _transpose(node: fx.Node) -> None:
    left, right = node.args
    swapped = [call(node, _aten.transpose.int, operand, -2, -1) for operand in (right, left)]
    product = call(node, node.target, *swapped)  # type: ignore[arg-type]
    strided = call(node, _aten.transpose.int, product, -2, -1)
    _hand_on(node, strided)
    # All other users were traced with a contiguous result, and may view it.
    if node.users:
        node.replace_all_uses_with(call(node, _aten.clone.default, strided, memory_format=torch.contiguous_format))
    node.graph.erase_node(node)


def _hand_on(node: fx.Node, strided: fx.Node) -> None:
    """Make other matrix products, which accept any strides, read the replacement of a node."""
    for user in list(node.users):
        if user.target in _PRODUCTS:
            user.replace_input_with(node, strided)
        elif user.target in _TRANSPOSITIONS:
            arguments: tuple[Any, ...] = user.args[1:]
            _hand_on(user, call(user, user.target, strided, *arguments))
            if not user.users:
                user.graph.erase_node(user)
