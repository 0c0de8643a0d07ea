"""The owner of each tensor that a program uses: Pyro's param store, a module, the caller, or only the program.

The captured graph holds the very tensors that the program met. Each is traced back to its owner, so that a
later call fetches the owner's current tensor: ``clear_param_store()`` or a replaced module parameter is
noticed, and training moves the tensors that Pyro and the user's modules hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from sgc.native import conditions
from sgc.native.conditions import Read
from sgc.tracing.state.param_store import Store
from sgc.tracing.threads import here, ignored


class Owner(Protocol):
    """Where to fetch an input's tensor at each call."""

    def fetch(self) -> Tensor | None:
        """The current tensor; None if the owner no longer has it."""
        ...

    def read(self) -> Read:
        """How a condition reads the tensor that :meth:`fetch` returns."""
        ...


@dataclass(frozen=True)
class StoreOwner:
    """The unconstrained tensor of a name in a param store."""

    name: str
    store: Store = field(repr=False)

    def fetch(self) -> Tensor | None:
        return self.store.get(self.name)

    def read(self) -> Read:
        return self.store.read(self.name)


@dataclass(frozen=True)
class ModuleOwner:
    """A parameter or buffer of an ``nn.Module``."""

    module: nn.Module = field(repr=False)
    attribute: str

    def fetch(self) -> Tensor | None:
        parameter = self.module._parameters.get(self.attribute)
        return parameter if parameter is not None else self.module._buffers.get(self.attribute)

    def read(self) -> Read:
        is_parameter = self.module._parameters.get(self.attribute) is not None
        holder = conditions.entry(vars(self.module), "_parameters" if is_parameter else "_buffers")
        return conditions.entry_of(holder, self.attribute)


@dataclass(frozen=True)
class FixedOwner:
    """A tensor that the program closes over, without a known owner."""

    tensor: Tensor = field(repr=False)

    def fetch(self) -> Tensor | None:
        return self.tensor

    def read(self) -> Read:
        return conditions.fixed(self.tensor)


@dataclass(frozen=True)
class ArgumentOwner:
    """A tensor among the leaves of the call's own arguments."""

    position: int

    def fetch(self) -> Tensor | None:
        return None

    def read(self) -> Read:
        return conditions.leaf(self.position)


@dataclass(frozen=True)
class Owned:
    """A tensor's owner and the name by which ``state_dict`` and the graph call it."""

    owner: Owner
    name: str
    is_buffer: bool = False


class Ownership:
    """An index of the known owners, by the identity of their tensors."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], store: Store) -> None:
        self._by_tensor: dict[int, Owned] = {}
        for name, tensor in store.held.named_parameters():
            self._by_tensor[id(tensor)] = Owned(StoreOwner(name, store), normalize_param_name(name))
        for root_name, root in modules:
            registered = self._registered_as(root)
            for path, module in root.named_modules():
                prefix = ".".join(part for part in (root_name if registered is None else registered, path) if part)
                for attribute, parameter in module._parameters.items():
                    self._add(parameter, module, attribute, prefix, is_buffer=False)
                for attribute, buffer in module._buffers.items():
                    self._add(buffer, module, attribute, prefix, is_buffer=True)

    def _registered_as(self, root: nn.Module) -> str | None:
        """What the names that its parameters have in the store begin with; None if none of them is in the store."""
        for path, parameter in root.named_parameters():
            owned = self._by_tensor.get(id(parameter))
            if owned is not None and f".{owned.name}".endswith(f".{path}"):
                return owned.name[: -len(path)].removesuffix(".")
        return None

    def _add(self, tensor: Tensor | None, module: nn.Module, attribute: str, prefix: str, *, is_buffer: bool) -> None:
        if tensor is not None and id(tensor) not in self._by_tensor:
            name = f"{prefix}.{attribute}" if prefix else attribute
            self._by_tensor[id(tensor)] = Owned(ModuleOwner(module, attribute), name, is_buffer)

    def of(self, tensor: Tensor) -> Owned | None:
        """The owner of a tensor, None if it is merely closed over."""
        return self._by_tensor.get(id(tensor))


class ModuleWatch:
    """Notes every ``nn.Module`` that its thread runs while it is active, so that closed-over modules are found."""

    def __init__(self) -> None:
        self.seen: dict[int, nn.Module] = {}

    def __enter__(self) -> ModuleWatch:
        def note(module: nn.Module, _inputs: object) -> None:
            self.seen.setdefault(id(module), module)

        note = here(note, ignored)
        self._handle = nn.modules.module.register_module_forward_pre_hook(note)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def roots(self, known: Iterable[nn.Module]) -> list[nn.Module]:
        """The outermost modules seen, without those inside ``known``."""
        covered = {id(inner) for module in known for inner in module.modules()}
        for module in self.seen.values():
            covered.update(id(inner) for inner in module.modules() if inner is not module)
        return [module for key, module in self.seen.items() if key not in covered]


def is_scripted(module: nn.Module) -> bool:
    """Whether TorchScript has compiled a module, whose tensors live in C++."""
    return isinstance(module, torch.jit.ScriptModule)


def is_trainable(tensor: Tensor) -> bool:
    """Whether the tensor can have a gradient."""
    return tensor.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
