"""Pyro's param store, or one that a copy of a loss module has for itself."""

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
"""Holds what is Pyro's while its store holds what is another's."""

_LENT_TO: list[ParamStoreDict] = [_PYROS_OWN]
"""Whose parts stand in Pyro's store, the latest last."""


class Store:
    """Where the parameters of a program are that ``pyro.param`` makes.

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
        """The store itself, of Pyro's class: what it holds now, wherever that stands."""
        return pyro.get_param_store() if self._own is _LENT_TO[-1] else self._own

    @property
    def watched(self) -> ParamStoreDict:
        """What conditions ask, which are made once: the store itself where nothing is lent."""
        return pyro.get_param_store() if self.is_pyros else self._own

    @property
    def is_pyros(self) -> bool:
        """Whether it is the one that ``pyro.param`` reads where nothing is lent."""
        return self._own is _PYROS_OWN

    def tensors(self) -> Mapping[str, Tensor]:
        """The unconstrained tensors by their names, now and until the program clears the store."""
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
        """That these names have these very constraints in it, and that Pyro has no other store."""
        found = []
        if self.is_pyros:
            found.append(conditions.is_same(conditions.result(pyro.get_param_store), pyro.get_param_store()))
        if expected:
            found += self.in_place()
        held = conditions.attribute(self.watched, "_constraints")
        return found + [conditions.is_same(conditions.entry_of(held, name), one) for name, one in expected.items()]

    def read(self, name: str) -> Read:
        """Where :meth:`get` finds it."""
        return conditions.entry_of(self._params, name)

    def in_place(self) -> list[Condition]:
        """That what is read by :meth:`read` is what this store holds: Pyro's holds nothing else meanwhile."""
        return [conditions.is_same(conditions.item(_LENT_TO, -1), _PYROS_OWN)] if self.is_pyros else []

    def conditions(self, names: Iterable[str]) -> list[Condition]:
        """That it holds under these names what it holds now."""
        params, found = self.held._params, []
        for name in names:
            read = self.read(name)
            found.append(conditions.is_same(read, params[name]) if name in params else conditions.absent(read))
        return found

    def put(self, name: str, tensor: Tensor, constraint: constraints.Constraint | None = None) -> None:
        """Make this the unconstrained tensor of a name, with the constraint that it has unless one is given."""
        held = self.held
        before = held._params.get(name)
        if before is not None:
            held._param_to_name.pop(before, None)
        held._params[name] = tensor
        held._param_to_name[tensor] = name
        if constraint is not None:
            held._constraints[name] = constraint

    def forget(self, name: str) -> None:
        """Have nothing under a name."""
        if name in self.held._params:
            del self.held[name]

    def is_held_elsewhere(self, reference: weakref.ref[Tensor]) -> bool:
        """Whether somebody in Python still holds a tensor; Pyro goes on noting the name of each that it has held."""
        tensor = reference()
        if tensor is None:
            return False
        here = 2 + (tensor in self.held._param_to_name)  # the variable and the argument
        return sys.getrefcount(tensor) > here

    def state(self, names: Iterable[str]) -> dict[str, tuple[Tensor, constraints.Constraint]]:
        """The tensors and constraints of those names that there are, to be pickled."""
        held = self.held
        for name in names:
            if name in held._params:
                vars(held._params[name]).pop("unconstrained", None)  # a weak reference of Pyro's, made at each look-up
        return {name: (held._params[name], held._constraints[name]) for name in names if name in held._params}

    def copied(self, memo: dict[int, Any]) -> Store:
        """One with copies of all tensors; one copy for each ``memo`` of ``copy.deepcopy``."""
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
        """Inside, Pyro's store holds what this one does; to be entered in a turn (:mod:`sgc.runtime.turns`)."""
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
    """Take from Pyro's store what is the one's, and put there what is the other's."""
    theirs = pyro.get_param_store()
    for part in _PARTS:
        setattr(one, part, getattr(theirs, part))  # the program may have cleared it
        setattr(theirs, part, getattr(other, part))


PYROS = Store()


def current_store() -> Store:
    """The store that Pyro uses now, whosever it is."""
    return Store(_LENT_TO[-1])


@contextmanager
def restored_on_error() -> Iterator[None]:
    """An error leaves what Pyro's store holds as it was."""
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
    """Where the tensors of a pickle go: into Pyro's store, unless that has others under one of the names."""
    params = PYROS.held._params
    free = all(params.get(name, tensor) is tensor for name, (tensor, _) in state.items())
    store = PYROS if free else Store(ParamStoreDict())
    for name, (tensor, constraint) in state.items():
        store.put(name, tensor, constraint)
    return store
