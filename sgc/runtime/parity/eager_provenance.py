"""Which samples a tensor depends on in an eager run, followed below autograd by the memory that operators use.

Pyro's ``ProvenanceTensor`` is a subclass of ``Tensor`` that stands in the program's way: an ``autograd.Function`` or a
legacy constructor treats it otherwise than a tensor. Here tensors are what they are without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgc.graph.effects import written_positions
from sgc.tracing.leaves.autograd_functions import applying, original_apply


class Provenance(TorchDispatchMode):
    """The samples upstream of each piece of memory that operators have made or written since it was entered."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        # Each storage is kept alive, so that no other gets its address.
        self._upstream: dict[int, tuple[torch.UntypedStorage, frozenset[str]]] = {}

    def of(self, *values: Any) -> frozenset[str]:
        """The samples upstream of the tensors in some values."""
        storages = (tensor.untyped_storage()._cdata for tensor in _tensors(values))
        return frozenset().union(*(self._upstream[key][1] for key in storages if key in self._upstream))

    def add(self, value: Any, names: frozenset[str]) -> None:
        """The tensors in a value depend on these samples, too."""
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            self._upstream[storage._cdata] = storage, self.of(tensor) | names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = self.of(args, kwargs)
        if names:
            self.add(result, names)
            for position, name in written_positions(func) if isinstance(func, torch._ops.OpOverload) else ():
                self.add(args[position] if position < len(args) else kwargs.get(name), names)
        return result


@contextmanager
def followed(provenance: Provenance) -> Iterator[None]:
    """Follow what depends on what; the results of an ``autograd.Function`` depend on all that it is given."""

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        result = original_apply(cls, *args, **kwargs)
        names = provenance.of(args, kwargs)
        if names:
            provenance.add(result, names)
        return result

    with provenance, applying(apply), _Literals(provenance):
        yield


class _Literals(TorchFunctionMode):
    """What is made of numbers depends on those among them that are tensors, and so does what is selected by an index
    without dims; no operator sees that.
    """

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self._provenance = provenance

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            names = self._provenance.of(args[func is Tensor.new_tensor :], kwargs)
            if names:
                self._provenance.add(result, names)
        elif func is Tensor.__getitem__:
            names = self._provenance.of(args[1])
            if names and isinstance(result, Tensor):
                result = result.clone()  # a view has the memory of all entries
                self._provenance.add(result, names)
        return result


def _tensors(value: Any) -> list[Tensor]:
    leaves = tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_nested]
