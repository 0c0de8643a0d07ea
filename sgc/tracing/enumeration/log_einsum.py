"""A sum of products in log space, as operators that fuse: what stands in for ``pyro.ops.einsum.torch_log.einsum``.

Pyro's goes through ``exp``, a matrix product and an ``autograd.Function``. Over the few values of a discrete site a
broadcast addition and a sum of exponentials are as exact, are compiled into one loop, and are batched along a chain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgc.graph.sizes import shape_of


def log_einsum(equation: str, *operands: Tensor, tables: list[tuple[int, ...]]) -> Tensor:
    """``log`` of the einsum of ``exp`` of the operands; where all products are zero, ``-inf`` without a gradient.

    :param tables: takes the shape of what is summed over, if anything is.
    """
    parts, output = equation.split("->")
    inputs = parts.split(",")
    if parts == output:
        return operands[0].clone()
    summed = "".join(sorted(set(parts) - set(output) - {","}))
    total: Tensor | None = None
    for dims, operand in zip(inputs, operands, strict=True):
        aligned = _aligned(operand, dims, summed + output)
        total = aligned if total is None else total + aligned
    assert total is not None
    if not summed:
        return total
    tables.append(shape_of(total.shape))
    return _log_sum_exp(total, len(summed))


def _aligned(operand: Tensor, dims: str, wanted: str) -> Tensor:
    """The operand with its dims in another order, and a dim of size one for each that it has not."""
    order = sorted(range(len(dims)), key=lambda position: wanted.index(dims[position]))
    if order != list(range(len(dims))):
        operand = operand.permute(order)
    for position, dim in enumerate(wanted):
        if dim not in dims:
            operand = operand.unsqueeze(position)
    return operand


def _log_sum_exp(values: Tensor, count: int) -> Tensor:
    """Over the first ``count`` dims, stable; ``torch.logsumexp`` has NaN as a gradient where all are ``-inf``."""
    dims = list(range(count))  # the first: where the others are a long plate, code runs along that
    shift = values.detach().amax(dims, keepdim=True).clamp(min=torch.finfo(values.dtype).min)
    total = (values - shift).exp().sum(dims)
    positive = total > 0
    log = torch.where(positive, total, torch.ones_like(total)).log()
    return torch.where(positive, log, torch.full_like(log, -torch.inf)) + shift.reshape(total.shape)
