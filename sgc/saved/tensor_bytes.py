"""Tensors as bytes: the elements in the order in which they lie in memory, and what is needed to lay them out again."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from sgc.emit.fx.values_as_data import of_torch
from sgc.errors import SavedProgramError


def tensor_as_data(name: str, tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    """What is noted of a tensor, and its elements.

    Dims along which it is expanded have stride 0 and one element. Where elements overlap or have gaps between them
    otherwise, it is laid out row by row.

    :raises sgc.errors.SavedProgramError: if it is not a plain strided tensor.
    """
    plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not plain or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise SavedProgramError(
            f"{name} is a {type(tensor).__name__} of layout {tensor.layout}, which no file holds",
            remedy="use a strided torch.Tensor there",
        )
    kept = tensor.detach().resolve_conj().resolve_neg()
    expanded = [dim for dim in range(kept.dim()) if kept.stride(dim) == 0 and kept.shape[dim] > 1]
    once = kept[tuple(slice(0, 1) if dim in expanded else slice(None) for dim in range(kept.dim()))]
    if not is_dense(once.shape, once.stride()):
        once = once.contiguous()
    elements = once.as_strided((once.numel(),), (1,), once.storage_offset()).cpu()
    strides = [0 if dim in expanded else stride for dim, stride in enumerate(once.stride())]
    noted = {
        "dtype": str(kept.dtype).removeprefix("torch."),
        "shape": list(kept.shape),
        "strides": strides,
        "device": str(kept.device),
    }
    return noted, ctypes.string_at(elements.data_ptr(), elements.numel() * elements.itemsize)


def tensor_of_data(noted: dict[str, Any], content: bytes) -> Tensor:
    """The tensor of which this was noted, on its device.

    :raises ValueError: if it has another number of elements than that.
    :raises RuntimeError: if its device is not there.
    """
    dtype, shape, strides = of_torch(noted["dtype"]), noted["shape"], noted["strides"]
    if not isinstance(dtype, torch.dtype) or len(shape) != len(strides):
        raise ValueError("a tensor without a dtype, or with other strides than dims")
    if not all(type(number) is int and number >= 0 for number in (*shape, *strides)):
        raise ValueError("a size or a stride is not a whole number")
    once = [1 if stride == 0 and size > 1 else size for size, stride in zip(shape, strides, strict=True)]
    if len(content) != math.prod(once) * dtype.itemsize or not is_dense(once, strides):
        raise ValueError(f"{len(content)} bytes are no {noted['dtype']}{shape}")
    device = torch.device(noted["device"])
    if not content:
        return torch.empty(shape, dtype=dtype, device=device)
    if dtype is torch.bool and content.strip(b"\x00\x01"):
        raise ValueError("a truth value that is neither 0 nor 1")
    elements = torch.frombuffer(bytearray(content), dtype=dtype).clone()
    return elements.as_strided(once, strides).expand(shape).to(device)


def is_dense(shape: Any, strides: Any) -> bool:
    """Whether as many elements as there are lie between the first and the last."""
    count = math.prod(shape)
    return not count or sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1 == count
