"""What modules are made of: submodules, parameters and buffers, and the hooks that run with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from sgc.guards.base import Call, Guard
from sgc.guards.hooks import GLOBAL_HOOKS, HOOKS
from sgc.guards.metadata import meta
from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition, Read
from sgc.tracing.state.owners import FixedOwner, ModuleOwner, Owner, is_scripted

_TENSORS = ("_parameters", "_buffers")

Allows = Callable[[Any], bool]
"""Whether an entry may hold this object now."""


class StructureGuard(Guard):
    """The submodules, hooks and names of tensors of each module, and which of these names mean one tensor.

    A tensor under one name may be replaced: a :class:`TensorGuard` fetches it anew.

    :param modules: all modules that the program can reach.
    :param owners: of the inputs of the compiled program, and of what it registers.
    """

    def __init__(self, modules: Iterable[nn.Module], owners: Iterable[Owner]) -> None:
        inner = {id(inner): inner for module in modules for inner in module.modules() if not is_scripted(inner)}
        kept = [(m, name, vars(m)[name]) for m in inner.values() for name in ("_modules", *HOOKS, *_TENSORS)]
        names = Counter(id(t) for _, name, held in kept if name in _TENSORS for t in held.values())
        owned = {id(owner.fetch()): owner for owner in owners}
        self._parts = [_Part(conditions.fixed(held), held.copy(), name) for name, held in GLOBAL_HOOKS.items()]
        for module, name, held in kept:
            part = _Part(conditions.entry(vars(module), name), held.copy(), f"{type(module).__name__}.{name}")
            if name in _TENSORS:
                for key, tensor in held.items():
                    if tensor is not None:
                        part.allow(key, tensor, owned.get(id(tensor)), module, is_alone=names[id(tensor)] == 1)
            self._parts.append(part)

    def conditions(self) -> list[Condition]:
        return [part.condition() for part in self._parts]

    def miss(self, call: Call) -> Miss | None:
        return next((Miss(f"{part.label} changed") for part in self._parts if not part.holds()), None)

    def describe(self) -> Iterator[str]:
        return iter(())


@dataclass
class _Part:
    """A dictionary with parts of a module, as it was.

    ``replaceable`` says for some names what may take the place of what was there, ``shared`` for others what must
    be there, since the same tensor is looked up elsewhere.
    """

    read: Read
    before: Mapping[Any, Any]
    label: str
    replaceable: dict[Any, Allows] = field(default_factory=dict)
    shared: dict[Any, Allows] = field(default_factory=dict)

    def allow(self, key: str, tensor: Tensor, owner: Owner | None, module: nn.Module, *, is_alone: bool) -> None:
        """Note what may become of a tensor.

        :param owner: where the compiled program looks it up, if it does.
        :param is_alone: whether no other module or name has it.
        """
        if owner is None:
            self.replaceable[key] = partial(_is_like, meta(tensor))
        elif isinstance(owner, ModuleOwner) and is_alone:
            self.replaceable[key] = _is_tensor
        elif not isinstance(owner, FixedOwner):
            self.shared[key] = lambda value: value is owner.fetch()

    def condition(self) -> Condition:
        objects = (*self.before.keys(), *self.before.values())
        return conditions.holds(self.read, type(self.before), objects, decide=self._holds_alone)

    def holds(self) -> bool:
        """Whether it holds what it did, or what may take its place."""
        entries = conditions.value(self.read)
        return self._has_its_names(entries) and all(
            self.shared[key](entries[key]) if key in self.shared else self._is_allowed(key, entries[key])
            for key in self.before
        )

    def _holds_alone(self, entries: Any) -> bool:
        """Whether it holds what it may, without a look at other modules."""
        return self._has_its_names(entries) and all(self._is_allowed(key, entries[key]) for key in self.before)

    def _has_its_names(self, entries: Any) -> bool:
        return isinstance(entries, dict) and [*entries] == [*self.before]

    def _is_allowed(self, key: Any, value: Any) -> bool:
        return value is self.before[key] or (key in self.replaceable and self.replaceable[key](value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_like(expected: Any, value: Any) -> bool:
    return isinstance(value, Tensor) and meta(value) == expected
