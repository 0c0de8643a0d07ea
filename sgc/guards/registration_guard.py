"""The names under which a program has parameters in Pyro's store, and in what modules the same tensors are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from sgc.guards.base import Call, Guard
from sgc.guards.identity import twins
from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.tracing.state.owners import FixedOwner, ModuleOwner, Owner, StoreOwner, is_scripted
from sgc.tracing.state.param_store import Store

_REMEDY = "register each module under a name of its own, or call pyro.clear_param_store() before the first step only"


class RegistrationGuard(Guard):
    """That the names are in the store, and that it and the program have one tensor where they had one.

    A captured tensor does not say from where the program had it: from the store, or from a module or variable whose
    tensor is registered there. As long as both hold the same one, that makes no difference.

    :param asked: the names that the program asks for.
    :param modules: all modules that the program can reach.
    :param owners: of the inputs of the compiled program.
    :param reached: the identities of tensors that the program can reach by variables and attributes of its own.
    """

    def __init__(
        self,
        store: Store,
        asked: Sequence[str],
        modules: Iterable[nn.Module],
        owners: Iterable[Owner],
        reached: Collection[int],
    ) -> None:
        of_inputs = [owner.name for owner in owners if isinstance(owner, StoreOwner)]
        names = dict.fromkeys([*asked, *of_inputs])
        tensors = {name: tensor for name in names if (tensor := store.get(name)) is not None}
        known = set(map(id, tensors.values()))
        inner = {id(inner): inner for module in modules for inner in module.modules() if not is_scripted(inner)}
        elsewhere: list[tuple[Owner, Tensor]] = [
            (ModuleOwner(module, attribute), tensor)
            for module in inner.values()
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]
            if tensor is not None and id(tensor) in known
        ]
        elsewhere += [(FixedOwner(tensor), tensor) for tensor in tensors.values() if id(tensor) in reached]
        self._store = store
        self._names = list(tensors)
        self._elsewhere = [owner for owner, _ in elsewhere]
        self._twins = twins([*tensors.values(), *(tensor for _, tensor in elsewhere)])
        several = {first for position, first in enumerate(self._twins) if first != position}
        self._tied = [name for name, first in zip(tensors, self._twins, strict=False) if first in several]
        unused = [name for name in tensors if name not in of_inputs and name not in self._tied]
        self._conditions = [
            *store.conditions(self._tied),
            *(conditions.like(store.read(name), tensors[name], _is_tensor) for name in unused),
        ]

    def conditions(self) -> list[Condition]:
        # What modules hold is the structure guard's: it asks whether that is what it was.
        return [*self._store.in_place(), *self._conditions] if self._conditions else []

    def miss(self, call: Call) -> Miss | None:
        return self._missed()

    def is_untied(self) -> bool:
        """Whether it does not hold."""
        return self._missed() is not None

    def _missed(self) -> Miss | None:
        tensors = [*self._store.fetch(self._names), *(owner.fetch() for owner in self._elsewhere)]
        for name, tensor in zip(self._names, tensors, strict=False):
            if tensor is None:
                return Miss(f"the parameter {normalize_param_name(name)} is gone")
        for tensor, first in zip(tensors, self._twins, strict=True):
            if tensor is not tensors[first]:
                name = normalize_param_name(self._names[first])
                return Miss(
                    f"the parameter {name} of Pyro's store is another tensor than the program has", remedy=_REMEDY
                )
        return None

    def describe(self) -> Iterator[str]:
        if self._tied:
            yield f"one tensor each in Pyro's store and elsewhere: {', '.join(map(normalize_param_name, self._tied))}"


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
