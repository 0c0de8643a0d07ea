"""Whether real tensors share memory. What the nodes of a graph share: :func:`sgc.graph.effects.storages`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor


def shares_storage(tensors: Sequence[Tensor], positions: Sequence[int]) -> bool:
    """Whether one of the tensors at these positions shares its storage with another of the tensors."""
    count = Counter(_storages(tensors))
    return any(count[tensors[i].untyped_storage().data_ptr()] > 1 for i in positions)


def have_own_storage(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether none of the results shares its storage with another or with an input."""
    storages = _storages(results)
    return len({*storages}) == len(storages) and {*storages}.isdisjoint(_storages(inputs))


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether the stretches of memory between the first and the last element of two tensors overlap."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not (one.numel() and other.numel()):
        return False
    (start, end), (other_start, other_end) = (
        (t.data_ptr(), t.data_ptr() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) * t.itemsize)
        for t in (one, other)
    )
    return start <= other_end and other_start <= end


def _storages(tensors: Sequence[Tensor]) -> list[int]:
    """Where the storages begin of tensors that have elements: those of others may all begin nowhere."""
    return [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
