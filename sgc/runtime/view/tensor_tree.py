"""Makes the tensors of a compiled loss visible to ``parameters()``, ``state_dict()`` and ``to()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from sgc.tracing.state.owners import FixedOwner, Owner, StoreOwner


class TensorTree(nn.Module):
    """Holds tensors that others own, under their dotted names.

    Pyro's parameters are plain leaf tensors. They stand in ``_parameters`` as they are, not wrapped in an
    ``nn.Parameter``, so that an optimizer moves the very tensors that ``pyro.param`` reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[str, Owner] = {}

    def put(self, name: str, tensor: Tensor, owner: Owner) -> Tensor | None:
        """Show ``tensor`` under ``name``; what was shown there before."""
        first, _, rest = name.partition(".")
        if rest:
            child = self._modules.get(first)
            if not isinstance(child, TensorTree):
                child = self._modules[first] = TensorTree()
            return child.put(rest, tensor, owner)
        tensors: dict[str, Any] = self._parameters
        before: Tensor | None = tensors.get(name)
        tensors[name] = tensor
        self._owners[name] = owner
        return before

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Tensor, Owner]]:
        """What was put into it: dotted names, tensors and their owners."""
        for tensors in (self._parameters, self._buffers):
            for name, tensor in tensors.items():
                assert tensor is not None
                yield prefix + name, tensor, self._owners[name]
        for name, child in self.named_children():
            assert isinstance(child, TensorTree)
            yield from child.entries(f"{prefix}{name}.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As ``nn.Module._apply``, for leaf tensors that are not ``nn.Parameter``: those of Pyro's store."""
        for child in self.children():
            child._apply(fn)
        for tensors in (self._parameters, self._buffers):
            for name, tensor in list(tensors.items()):
                assert tensor is not None
                with torch.no_grad():
                    moved = fn(tensor)
                if moved is tensor:
                    continue
                # As nn.Module does: between the CPU and a GPU too, the object stays that optimizers hold.
                if torch._has_compatible_shallow_copy_type(tensor, moved):
                    gradient, tensor.grad = tensor.grad, None
                    tensor.data = moved
                    tensor.grad = None if gradient is None else fn(gradient)
                    continue
                moved = moved.detach().requires_grad_(tensor.requires_grad)
                owner = self._owners[name]
                if isinstance(owner, FixedOwner):
                    continue  # the program itself holds that very object, which cannot be moved
                if isinstance(owner, StoreOwner):
                    owner.store.put(owner.name, moved)
                tensors[name] = moved  # type: ignore[assignment]
        return self


def inside(modules: Iterable[nn.Module]) -> set[int]:
    """The identities of all parameters and buffers of some modules."""
    identities: set[int] = set()
    for module in modules:
        identities.update(id(tensor) for tensor in module.parameters())
        identities.update(id(tensor) for tensor in module.buffers())
    return identities


def network_name(module: nn.Module) -> str:
    """The name under which ``pyro.module`` registered it, else that of its class."""
    store = pyro.get_param_store()
    for path, parameter in module.named_parameters():
        name = store.param_name(parameter)
        if name is not None and name.endswith(f"$$${path}"):
            return name.removesuffix(f"$$${path}").replace(".", "_")
    return type(module).__name__.lower()
