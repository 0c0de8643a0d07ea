"""What Python is told of tensors by functions whose answer says less than their values: that is what is guarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def asked_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The answer of a function as a 0-d tensor; None where it is the values themselves, or no answer but an error."""
    ask = _ASKED.get(getattr(func, "__name__", ""))
    return None if ask is None else ask(*args, **kwargs)


def _is_nonzero(tensor: Tensor) -> Tensor | None:
    return None if tensor.numel() != 1 else tensor.detach().reshape(()).ne(0)


def _whole(tensor: Tensor) -> Tensor | None:
    is_number = tensor.numel() == 1 and not tensor.is_complex()
    return tensor.detach().reshape(()).to(torch.int64) if is_number else None


def _are_equal(one: Tensor, other: Tensor) -> Tensor | None:
    if one.dtype != other.dtype:
        return None
    if one.shape != other.shape:
        return torch.zeros((), dtype=torch.bool)
    return one.detach().eq(other.detach()).all()


def _are_close(input: Tensor, other: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.isclose(input.detach(), other.detach(), *args, **kwargs).all()


def _contains(tensor: Tensor, element: Any) -> Tensor | None:
    return tensor.detach().eq(element).any() if isinstance(element, (Tensor, int, float)) else None


_ASKED: dict[str, Callable[..., Tensor | None]] = {
    "__bool__": _is_nonzero,
    "is_nonzero": _is_nonzero,
    "__int__": _whole,
    "__index__": _whole,
    "equal": _are_equal,
    "allclose": _are_close,
    "__contains__": _contains,
}
