"""Undoes what an eager run writes into tensors that existed before it.

Nothing is copied in advance: every operator is seen before it runs, its schema says what it writes into, and the memory
that it is about to write is copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sgc.errors import SourceLine
from sgc.graph.effects import written_positions
from sgc.tracing.source import current_line
from sgc.tracing.state.param_store import current_store

_LIFT_FRESH = torch.ops.aten.lift_fresh.default  # its operand was made by Python just now


class Written:
    """Storages that a program writes into, with copies of their contents before."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
        self._lines: dict[int, SourceLine | None] = {}

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Copy a storage, unless there is a copy, since the user's present line is about to write into it."""
        if storage._cdata not in self._kept:
            self._kept[storage._cdata] = storage, _bytes(storage).clone()
            self._lines[storage._cdata] = current_line()

    def line_of(self, tensor: Tensor) -> SourceLine | None:
        """The line that first writes into the memory of a tensor, if one does."""
        return self._lines.get(tensor.untyped_storage()._cdata)

    def before(self, tensor: Tensor) -> Tensor:
        """The tensor as it was before: a view of the copy, or the tensor if it was not written into."""
        kept = self._kept.get(tensor.untyped_storage()._cdata) if _tensors(tensor) else None
        if kept is None:
            return tensor
        view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return view.set_(kept[1].untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())

    @contextmanager
    def again(self) -> Iterator[Written]:
        """What is written into the same memory is undone. A capture does so where no traced tensor takes part."""
        present = Written()
        for storage, _ in self._kept.values():
            present.keep(storage)
        try:
            yield present
        finally:
            present.put_back()

    def put_back(self, but: Collection[int] = ()) -> None:
        """Undo the writes, except into some storages."""
        for key, (storage, before) in self._kept.items():
            if key not in but:
                if storage.nbytes() != before.numel():
                    storage.resize_(before.numel())
                _bytes(storage).copy_(before)


class _Mode(TorchDispatchMode):
    """Copies each storage before the first write into it, unless it was allocated inside."""

    supports_higher_order_operators = True

    def __init__(self, written: Written) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._written = written

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written, is_fresh = _effects(func)
        for position, name in written:
            for tensor in _tensors(args[position] if position < len(args) else kwargs.get(name)):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._made:
                    self._written.keep(storage)
        result = func(*args, **kwargs)
        if is_fresh:
            self._made.update(tensor.untyped_storage()._cdata for tensor in _tensors(result))
        return result


@contextmanager
def undone_writes(*, on_error_only: bool = False) -> Iterator[Written]:
    """Restore afterwards the contents of all tensors that existed before.

    Parameters that it puts into Pyro's store keep their memory, whatever that was before: they are made only once.

    :param on_error_only: leave what a program has written that ends without an error.
    """
    store, written = current_store(), Written()
    before = {id(tensor) for tensor in store.tensors().values()}
    ended = False
    try:
        with _Mode(written):
            yield written
        ended = True
    finally:
        if not (ended and on_error_only):
            new = [tensor for tensor in store.tensors().values() if id(tensor) not in before]
            written.put_back({tensor.untyped_storage()._cdata for tensor in _tensors(new)})


@cache
def _effects(func: Callable[..., Any]) -> tuple[tuple[tuple[int, str], ...], bool]:
    """Which arguments an operator writes into, by position and name, and whether its results are new memory."""
    schema: Any = getattr(func, "_schema", None)
    if schema is None or torch.Tag.inplace_view in getattr(func, "tags", ()):
        return (), False
    is_fresh = func is _LIFT_FRESH or all(result.alias_info is None for result in schema.returns)
    return written_positions(func), is_fresh


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    view = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return view.set_(storage, 0, (storage.nbytes(),), (1,))


def _tensors(value: Any) -> Iterable[Tensor]:
    """The tensors in an operator's argument or result that have a storage."""
    parts = value if isinstance(value, (list, tuple)) else (value,)
    return [part for part in parts if isinstance(part, Tensor) and part.layout is torch.strided and not part.is_nested]
