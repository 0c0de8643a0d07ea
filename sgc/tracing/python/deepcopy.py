"""Copies of tensors that Python makes through their memory, which traced ones lack: ``copy.deepcopy(x)``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A leaf of its own with the tensor's values of each run; one copy for each ``memo``.

    It takes over ``requires_grad``, as ``copy.deepcopy`` does, and no other attribute.
    """
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        required = tensor.requires_grad
        memo[id(tensor)] = nn.Parameter(copied, required) if is_parameter else copied.requires_grad_(required)
    copy: Tensor = memo[id(tensor)]
    return copy
