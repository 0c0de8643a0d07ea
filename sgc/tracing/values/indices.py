"""Indices of traced tensors: what torch would read of one (a mask, a number, the end of a slice) is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sgc.errors import DataDependenceError
from sgc.tracing.values.reads import Reads

_READER = "a Boolean index"


def get_item(reads: Reads, func: Callable[..., Any], tensor: Tensor, index: Any) -> Any:
    """``tensor[index]``. A selection by a mask that depends on a sample can be used in one way only."""
    parts = index if isinstance(index, tuple) else (index,)
    try:
        replaced = [new for part in parts for new in _read_part(reads, part)]
    except DataDependenceError as error:
        if isinstance(index, Tensor) and index.dtype is torch.bool and index.dim() > 0:
            return MaskedSelection(tensor, index, error)
        raise
    return func(_picked(tensor, parts), _index(index, parts, replaced))


def set_item(reads: Reads, func: Callable[..., Any], tensor: Tensor, index: Any, value: Any) -> None:
    """``tensor[index] = value``."""
    if isinstance(value, MaskedSelection):
        value.write_to(tensor, index)
    elif _is_mask(index) and index.dim() == 0:
        # Indexing with a 0-d Boolean calls .item().
        given = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)
        tensor.copy_(torch.where(index.bool(), given, tensor))
    else:
        parts = index if isinstance(index, tuple) else (index,)
        replaced = [new for part in parts for new in _written_part(reads, part)]
        func(tensor, _index(index, parts, replaced), value)


def _read_part(reads: Reads, part: Any) -> Sequence[Any]:
    """What stands for a part of an index that picks entries; :func:`_picked` has applied 0-d whole numbers."""
    if _is_mask(part):
        return [reads.read(part, _READER, bool)] if part.dim() == 0 else _positions(reads, part)
    return [0] if _is_number(part) else [_slice(reads, part)]


def _written_part(reads: Reads, part: Any) -> Sequence[Any]:
    """What stands for a part of an index that says where to write: masks may depend on samples here."""
    if _is_mask(part):
        known = part.dim() > 0 and not reads.is_refusing and reads.growing.is_literal(part)
        return _positions(reads, part) if known else [part]
    return [part.reshape(1)] if _is_number(part) else [_slice(reads, part)]


def _picked(tensor: Tensor, parts: Sequence[Any]) -> Tensor:
    """A tensor where each 0-d whole number of an index has picked its entry, so that 0 picks it again.

    Indexing with a 0-d tensor calls ``.item()``; one of a single element does not.
    """
    of_ellipsis = tensor.dim() - sum(map(_dims_taken, parts))
    dim = 0
    for part in parts:
        if _is_number(part):
            tensor = tensor[(slice(None),) * dim + (part.reshape(1),)]
        dim += of_ellipsis if part is Ellipsis else _dims_taken(part)
    return tensor


def _dims_taken(part: Any) -> int:
    """How many dims of a tensor a part of an index takes."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.dim() if _is_mask(part) else 1


def _positions(reads: Reads, mask: Tensor) -> Sequence[Tensor]:
    """The indices of the true entries of a mask, for each of its dims."""
    return reads.read(mask, _READER, lambda value: value.bool().nonzero(as_tuple=True))


def _slice(reads: Reads, part: Any) -> Any:
    """A slice whose ends are numbers."""
    ends = (part.start, part.stop, part.step) if isinstance(part, slice) else ()
    if not any(isinstance(end, Tensor) for end in ends):
        return part
    return slice(*(reads.read(end, "a slice", Tensor.item) if isinstance(end, Tensor) else end for end in ends))


def _index(index: Any, parts: Sequence[Any], replaced: Sequence[Any]) -> Any:
    """The index itself where no part was replaced: to torch a list is not what a tuple of one list is."""
    same = len(parts) == len(replaced) and all(new is part for new, part in zip(replaced, parts, strict=True))
    return index if same else tuple(replaced)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)


def _is_number(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dim() == 0 and not part.dtype.is_floating_point and not _is_mask(part)


class MaskedSelection:
    """``tensor[mask]`` with a mask that depends on a sample, so that its length is unknown.

    All that it can be used for is ``other[mask] = tensor[mask]``, the idiom of Pyro's splines. Any other use
    raises the error that names the site.
    """

    def __init__(self, tensor: Tensor, mask: Tensor, error: DataDependenceError) -> None:
        self.__dict__.update(_tensor=tensor, _mask=mask, _error=error)

    def write_to(self, target: Tensor, mask: Any) -> None:
        """``target[mask] = tensor[mask]``, for any number of true entries."""
        if mask is not self._mask or target.shape != self._tensor.shape:
            raise self._error
        shaped = mask.reshape(mask.shape + (1,) * (target.dim() - mask.dim()))
        target.copy_(torch.where(shaped, self._tensor, target))

    def __getattr__(self, name: str) -> Any:
        raise self._error

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise self._error

    __torch_function__ = __len__ = __iter__ = __getitem__ = __bool__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __matmul__ = __rmatmul__ = _refuse
