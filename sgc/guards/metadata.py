"""Shape, dtype, device, strides and ``requires_grad`` of tensors: in one call for many, and in words for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

# The check behind torch.compile's own tensor guards, private to torch: one call for all tensors, where five attributes
# of each cost more than everything else that is guarded.
from torch._C._dynamo.guards import TensorGuards

from sgc.guards.miss import FEW_SHAPES, Miss

Meta = tuple[tuple[Any, ...], torch.dtype, torch.device, bool, tuple[int, ...]]


class Alike:
    """The metadata of some tensors, for later ones to be compared with; the tensors are not kept.

    More is compared than the metadata (the type, what is in force around the call such as autocast), and one tensor in
    two places is refused: a comparison that fails proves nothing. ``check(*tensors)`` compares tensors that are not
    nested ones.

    :param dims: those dims of each tensor that may have any size; where there are some, strides are not compared.
    """

    def __init__(self, tensors: Sequence[Tensor], dims: Sequence[Collection[int]] = ()) -> None:
        sizes: list[Any] = [list(tensor.shape) for tensor in tensors]
        strides: list[Any] = [list(tensor.stride()) for tensor in tensors]
        for position, any_size in enumerate(dims):
            if any_size:
                sizes[position] = [None if dim in any_size else size for dim, size in enumerate(sizes[position])]
                strides[position] = [None] * len(strides[position])
        self.check: Callable[..., bool] = TensorGuards(
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        ).check

    def hold(self, values: Sequence[Any]) -> bool:
        """Whether these are alike, one by one; as many as there were."""
        return not any(getattr(value, "is_nested", True) for value in values) and self.check(*values)


def meta(tensor: Tensor, dims: Collection[int] = ()) -> Meta:
    """The metadata of a tensor.

    :param dims: dims whose sizes are left open, and the strides with them.
    """
    if not dims:
        return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride()
    shape = tuple(ANY if dim in dims else size for dim, size in enumerate(tensor.shape))
    return shape, tensor.dtype, tensor.device, tensor.requires_grad, ()


def other_sizes(expected: Meta, tensor: Tensor) -> frozenset[int]:
    """The dims in which the sizes of a tensor differ, or may differ, if nothing else of it does but strides."""
    if tensor.dim() != len(expected[0]) or tensor.layout is not torch.strided:
        return frozenset()
    dims = frozenset(dim for dim, size in enumerate(tensor.shape) if size != expected[0][dim])
    return dims if meta(tensor, dims)[1:4] == expected[1:4] else frozenset()


class _Any:
    def __repr__(self) -> str:
        return "any"


ANY: Any = _Any()
"""Stands for any size."""


def meta_difference(name: str, expected: Meta, actual: Meta) -> Miss:
    """How they differ."""
    for what, one, other in zip(("shape", "dtype", "device", "requires_grad", "stride"), expected, actual, strict=True):
        if one != other:
            about = f"the {what} of {name}"
            return Miss(f"{about} was {meta_shown(one)}, is {meta_shown(other)}", about, _REMEDIES.get(what, ""))
    raise AssertionError("no difference")


_REMEDIES = {"shape": FEW_SHAPES, "stride": "pass tensors that lie in memory alike: contiguous() makes them"}


def meta_shown(value: Any) -> str:
    """A part of the metadata, in words."""
    return str(list(value)) if isinstance(value, (torch.Size, tuple)) else str(value)
