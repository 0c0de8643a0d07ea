"""Refuses tensors that are not laid out in strides: sparse ones, and operators whose gradient is sparse."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.errors import CaptureError

_SWITCHES = ("sparse", "sparse_grad")
"""The names of arguments that ask an operator for a sparse gradient."""


def check_layout(name: str, tensor: Tensor) -> None:
    """An input of a compiled program has strides.

    :raises CaptureError: otherwise.
    """
    if tensor.layout is not torch.strided:
        raise CaptureError(
            f"{name} is a tensor of layout {tensor.layout}, which a compiled program does not take",
            remedy="pass its indices and values, or to_dense()",
        )


def check_gradients(graph: fx.Graph) -> None:
    """Gradients have strides.

    :raises CaptureError: for an operator that is asked for a sparse one.
    """
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        for position, argument in enumerate(node.target._schema.arguments):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if argument.name in _SWITCHES and given is True:
                raise CaptureError(
                    f"{node.target.overloadpacket.__name__} is asked for a sparse gradient, which a compiled program "
                    "does not compute",
                    remedy=f"leave {argument.name}=True out",
                )
