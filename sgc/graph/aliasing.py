"""Whether real tensors share memory. What the nodes of a graph share: :func:`sgc.graph.effects.storages`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def shares_storage(tensors: Sequence[Tensor], positions: Sequence[int]) -> bool:
    """Whether one of the tensors at these positions shares its storage with another of the tensors."""
    count = Counter(_storages(tensors))
    return any(count[tensors[i].untyped_storage().data_ptr()] > 1 for i in positions)


def have_own_storage(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether none of the results shares its storage with another or with an input."""
    storages = _storages(results)
    return len({*storages}) == len(storages) and {*storages}.isdisjoint(_storages(inputs))


def shared(tensors: Sequence[Tensor | None], written: Collection[int]) -> list[tuple[int, int]]:
    """Which tensors have elements in common with one of those that are written, as pairs of positions, each in order.

    :param tensors: None stands for one that does not count.
    :param written: the positions of those that are written.
    """
    pairs: list[tuple[int, int]] = []
    present = [(str(t.device), t.data_ptr(), i, t) for i, t in enumerate(tensors) if t is not None and extent(t)]
    before: list[tuple[str, int, int, Tensor]] = []  # those whose memory has not ended yet
    for device, start, i, tensor in sorted(present, key=lambda one: one[:3]):
        before = [one for one in before if one[0] == device and one[1] > start]
        pairs += [
            (min(i, j), max(i, j))
            for _, _, j, other in before
            if (i in written or j in written) and _have_common_elements(tensor, other)
        ]
        before.append((device, start + extent(tensor), i, tensor))
    return pairs


def extent(tensor: Tensor) -> int:
    """How many bytes lie between the begin of a tensor's first element and the end of its last; 0 if it has none."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize if tensor.numel() and tensor.data_ptr() else 0


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies without history: those of views of the same elements are views of the same elements again."""
    together = {i for pair in shared(tensors, range(len(tensors))) for i in pair} if len(tensors) > 1 else set()
    storages: dict[int, torch.UntypedStorage] = {}
    made: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        if i not in together:
            made.append(tensor.detach().clone())
            continue
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = storage.clone()
        view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.append(view.set_(storages[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride()))
    return made


def _have_common_elements(one: Tensor, other: Tensor) -> bool:
    """Whether an element of one lies where an element of the other lies, of two whose stretches of memory overlap."""
    if all(extent(tensor) == tensor.numel() * tensor.itemsize for tensor in (one, other)):
        return True  # neither has gaps
    start = min(one.data_ptr(), other.data_ptr())
    end = max(tensor.data_ptr() + extent(tensor) for tensor in (one, other))
    unit = math.gcd(one.itemsize, other.itemsize, one.data_ptr() - other.data_ptr())
    memory = torch.zeros((end - start) // unit, dtype=torch.bool, device="cpu")
    _part_of(one, memory, start, unit).fill_(True)
    return bool(_part_of(other, memory, start, unit).any())


def _part_of(tensor: Tensor, memory: Tensor, start: int, unit: int) -> Tensor:
    """What a tensor takes up of ``memory``, which has an element for each ``unit`` of bytes from an address on."""
    width = tensor.itemsize // unit
    strides = [stride * width for stride in tensor.stride()]
    return memory.as_strided((*tensor.shape, width), (*strides, 1), (tensor.data_ptr() - start) // unit)


def _storages(tensors: Sequence[Tensor]) -> list[int]:
    """Where the storages begin of tensors that have elements: those of others may all begin nowhere."""
    return [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
