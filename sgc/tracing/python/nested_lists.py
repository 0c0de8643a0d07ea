"""Tensors that a program makes of nested lists with tensors in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def stacked(parts: Any, device: torch.device | str) -> Tensor:
    """What ``torch.tensor`` makes of a nested list with tensors in it, which it reads one number at a time."""
    if not isinstance(parts, (list, tuple)):
        return parts.to(device) if isinstance(parts, Tensor) else torch.tensor(parts, device=device)
    tensors = [stacked(part, device) for part in parts]
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.stack([tensor.to(dtype) for tensor in tensors])
