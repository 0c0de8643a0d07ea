"""Shape, dtype, device, strides and ``requires_grad`` of tensors: in one call for many, and in words for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The check behind torch.compile's own tensor guards, private to torch: one call for all tensors, where five attributes
# of each cost more than everything else that is guarded.
from torch._C._dynamo.guards import TensorGuards

from sgc.guards.miss import FEW_SHAPES, Miss

Meta = tuple[torch.Size, torch.dtype, torch.device, bool, tuple[int, ...]]


class Alike:
    """The metadata of some tensors, for later ones to be compared with; the tensors are not kept.

    More is compared than the metadata (the type, what is in force around the call such as autocast), and one tensor in
    two places is refused: a comparison that fails proves nothing. ``check(*tensors)`` compares tensors that are not
    nested ones.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.check: Callable[..., bool] = TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],  # type: ignore[misc]
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],  # type: ignore[misc]
        ).check

    def hold(self, values: Sequence[Any]) -> bool:
        """Whether these are alike, one by one; as many as there were."""
        return not any(getattr(value, "is_nested", True) for value in values) and self.check(*values)


def meta(tensor: Tensor) -> Meta:
    """The metadata of a tensor."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride()


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
