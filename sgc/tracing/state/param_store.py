"""The adapter for Pyro's param store, and for the separate store of a copied loss module."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyro
from pyro.distributions import constraints
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from sgc.native import conditions
from sgc.native.conditions import Condition, Read

_PARTS = ("_params", "_param_to_name", "_constraints")
"""The dictionaries in which Pyro's class keeps tensors, their names and constraints; it has no public way to them."""

_PYROS_OWN = ParamStoreDict()
"""Holds Pyro's own parameters while another store is lent to Pyro."""

_LENT_TO: list[ParamStoreDict] = [_PYROS_OWN]
"""The stores lent to Pyro, the current one last."""


class Store:
    """The param store of a program.

    Pyro knows one store in a process. A copy of a loss module has values of its own under the same names; while Pyro
    runs its program, they stand in Pyro's store (:meth:`lent`), and otherwise only here.

    :param own: None for Pyro's.
    """

    def __init__(self, own: ParamStoreDict | None = None) -> None:
        self._own = _PYROS_OWN if own is None else own

    # One read for all names, so that the dictionary is fetched once for all of them.
    @cached_property
    def _params(self) -> Read:
        return conditions.attribute(self.watched, "_params")

    @property
    def held(self) -> ParamStoreDict:
        """The object of Pyro's class that has the parameters now: Pyro's while lent, else its own."""
        return pyro.get_param_store() if self._own is _LENT_TO[-1] else self._own

    @property
    def watched(self) -> ParamStoreDict:
        """The object that conditions read, as if nothing were lent."""
        return pyro.get_param_store() if self.is_pyros else self._own

    @property
    def is_pyros(self) -> bool:
        """Whether it is Pyro's own store."""
        return self._own is _PYROS_OWN

    def tensors(self) -> Mapping[str, Tensor]:
        """The unconstrained tensors by name, valid until the store is cleared."""
        return self.held._params

    def get(self, name: str) -> Tensor | None:
        """The unconstrained tensor of a name."""
        return self.held._params.get(name)

    def fetch(self, names: Iterable[str]) -> list[Tensor | None]:
        """The unconstrained tensor of each name."""
        return list(map(self.held._params.get, names))

    def constraint(self, name: str) -> constraints.Constraint | None:
        """The constraint of a name."""
        return self.held._constraints.get(name)

    def constrained(self, expected: Mapping[str, constraints.Constraint | None]) -> list[Condition]:
        """Conditions: these names have these very constraints, and Pyro still uses the same store."""
        made = []
        if self.is_pyros:
            made.append(conditions.is_same(conditions.result(pyro.get_param_store), pyro.get_param_store()))
        if expected:
            made += self.in_place()
        held = conditions.attribute(self.watched, "_constraints")
        return made + [conditions.is_same(conditions.entry_of(held, name), one) for name, one in expected.items()]

    def read(self, name: str) -> Read:
        """How a condition reads what :meth:`get` returns."""
        return conditions.entry_of(self._params, name)

    def in_place(self) -> list[Condition]:
        """Conditions under which :meth:`read` reads this store: nothing is lent to Pyro."""
        return [conditions.is_same(conditions.item(_LENT_TO, -1), _PYROS_OWN)] if self.is_pyros else []

    def conditions(self, names: Iterable[str]) -> list[Condition]:
        """Conditions: these names have the tensors that they have now."""
        params, made = self.held._params, []
        for name in names:
            read = self.read(name)
            made.append(conditions.is_same(read, params[name]) if name in params else conditions.absent(read))
        return made

    def put(self, name: str, tensor: Tensor, constraint: constraints.Constraint | None = None) -> None:
        """Set the unconstrained tensor of a name; its constraint stays unless one is given."""
        held = self.held
        before = held._params.get(name)
        if before is not None:
            held._param_to_name.pop(before, None)
        held._params[name] = tensor
        held._param_to_name[tensor] = name
        if constraint is not None:
            held._constraints[name] = constraint

    def forget(self, name: str) -> None:
        """Remove a name, if present."""
        if name in self.held._params:
            del self.held[name]

    def is_held_elsewhere(self, reference: weakref.ref[Tensor]) -> bool:
        """Whether a tensor is still referenced, apart from Pyro's map of names, which forgets none."""
        tensor = reference()
        if tensor is None:
            return False
        here = 2 + (tensor in self.held._param_to_name)  # the variable and the argument
        return sys.getrefcount(tensor) > here

    def state(self, names: Iterable[str]) -> dict[str, tuple[Tensor, constraints.Constraint]]:
        """The tensors and constraints of the names that are present, for pickling."""
        held = self.held
        for name in names:
            if name in held._params:
                vars(held._params[name]).pop("unconstrained", None)  # a weak reference of Pyro's, made at each look-up
        return {name: (held._params[name], held._constraints[name]) for name in names if name in held._params}

    def copied(self, memo: dict[int, Any]) -> Store:
        """A store with copies of all tensors; one for each ``memo`` of ``copy.deepcopy``."""
        held, own = self.held, self._own
        if id(own) not in memo:
            made = Store(memo.setdefault(id(own), ParamStoreDict()))
            for name, tensor in held._params.items():
                copied = copy.deepcopy(tensor, memo)
                vars(copied).pop("unconstrained", None)  # it refers to the original
                made.put(name, copied, held._constraints[name])
        return Store(memo[id(own)])

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Lend this store to Pyro inside; only in a turn (:mod:`sgc.runtime.turns`)."""
        before = _LENT_TO[-1]
        if before is self._own:
            yield
            return
        _exchange(before, self._own)
        _LENT_TO.append(self._own)
        try:
            yield
        finally:
            _LENT_TO.pop()
            _exchange(self._own, before)
            if before is _PYROS_OWN:
                before.clear()  # what Pyro's store lets go of later is kept by nobody


def _exchange(one: ParamStoreDict, other: ParamStoreDict) -> None:
    """Move what Pyro's store holds to ``one``, and what ``other`` holds to Pyro's store."""
    theirs = pyro.get_param_store()
    for part in _PARTS:
        setattr(one, part, getattr(theirs, part))  # the program may have cleared it
        setattr(theirs, part, getattr(other, part))


PYROS = Store()


def current_store() -> Store:
    """The store that Pyro uses now: its own, or the one that is lent."""
    return Store(_LENT_TO[-1])


@contextmanager
def restored_on_error() -> Iterator[None]:
    """Restore the contents of Pyro's store on an error."""
    store = pyro.get_param_store()
    parts: dict[str, dict[Any, Any]] = {part: getattr(store, part) for part in _PARTS}
    before = [dict(entries) for entries in parts.values()]
    try:
        yield
    except BaseException:
        for (part, entries), old in zip(parts.items(), before, strict=True):
            entries.clear()
            entries.update(old)
            setattr(store, part, entries)  # clear_param_store() makes other dictionaries
        raise


def store_of(state: Mapping[str, tuple[Tensor, constraints.Constraint]]) -> Store:
    """The store for unpickled tensors: Pyro's, or a new one if Pyro's has other tensors under these names."""
    params = PYROS.held._params
    free = all(params.get(name, tensor) is tensor for name, (tensor, _) in state.items())
    store = PYROS if free else Store(ParamStoreDict())
    for name, (tensor, constraint) in state.items():
        store.put(name, tensor, constraint)
    return store
