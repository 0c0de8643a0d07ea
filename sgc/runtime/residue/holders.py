"""The ways in which objects hold others: what one held once, what is new in it, and how it holds the old again."""

from __future__ import annotations

import functools
import gc
import operator
import types
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sgc.runtime.residue.reachable import BUILTIN, INSIDE, UNWRITTEN, Step, Visit, entry, in_slots
from sgc.tracing.state.value_parts import MISSING


class Holder(ABC):
    """An object, and what it held when this was made."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.before = self.read(visit.value)

    @staticmethod
    @abstractmethod
    def read(value: Any) -> Any:
        """What an object holds, as a dictionary or a list."""

    @abstractmethod
    def has_changed(self) -> bool:
        """Whether it holds other objects now, or in another order."""

    @abstractmethod
    def new(self) -> Iterator[Visit]:
        """The parts that it did not hold."""

    @abstractmethod
    def put_back(self, places: Sequence[Visit]) -> None:
        """Hold what was held in the places of some of the :meth:`new` parts."""


class _Sequence(Holder):
    """What holds its parts in an order, or in none; what was held is put back as a whole."""

    step: ClassVar[Step] = INSIDE

    def has_changed(self) -> bool:
        now = self.read(self.visit.value)
        return len(now) != len(self.before) or not all(map(operator.is_, now, self.before))

    def new(self) -> Iterator[Visit]:
        known = set(map(id, self.before))
        for part in self.read(self.visit.value):
            if id(part) not in known:
                yield Visit(part, self.visit, self.step)


class _List(_Sequence):
    @staticmethod
    def read(value: Any) -> list[Any]:
        return list.copy(value)

    def put_back(self, places: Sequence[Visit]) -> None:
        list.__setitem__(self.visit.value, slice(None), self.before)


class _Deque(_Sequence):
    @staticmethod
    def read(value: Any) -> list[Any]:
        return list(deque.__iter__(value))

    def put_back(self, places: Sequence[Visit]) -> None:
        deque.clear(self.visit.value)
        deque.extend(self.visit.value, self.before)


class _Set(_Sequence):
    @staticmethod
    def read(value: Any) -> list[Any]:
        return list(set.__iter__(value))

    def put_back(self, places: Sequence[Visit]) -> None:
        set.clear(self.visit.value)
        set.update(self.visit.value, self.before)


class _Array(_Sequence):
    """A numpy array of objects."""

    @staticmethod
    def read(value: Any) -> list[Any]:
        return list(value.flat)

    def put_back(self, places: Sequence[Visit]) -> None:
        for position, part in enumerate(self.before):
            self.visit.value.flat[position] = part


class _Opaque(_Sequence):
    """An object that says what it holds, but lets nobody write: a generator, an iterator."""

    step = UNWRITTEN

    @staticmethod
    def read(value: Any) -> list[Any]:
        return gc.get_referents(value)

    def put_back(self, places: Sequence[Visit]) -> None:
        """It stays; what is still there after all is put back is an error."""


class _Cell(_Sequence):
    @staticmethod
    def read(value: Any) -> list[Any]:
        return gc.get_referents(value)

    def put_back(self, places: Sequence[Visit]) -> None:
        if self.before:
            self.visit.value.cell_contents = self.before[0]
        else:
            del self.visit.value.cell_contents


class _Cache(_Sequence):
    """The results that ``functools.lru_cache`` keeps: they are computed again when asked for."""

    @staticmethod
    def read(value: Any) -> list[Any]:
        return gc.get_referents(value)

    def put_back(self, places: Sequence[Visit]) -> None:
        self.visit.value.cache_clear()


class _Mapping(Holder):
    """What holds its parts under keys; each is put back by itself."""

    def has_changed(self) -> bool:
        now = self.read(self.visit.value)
        same = len(now) == len(self.before) and all(map(operator.is_, now.values(), self.before.values()))
        return not (same and all(map(operator.is_, now, self.before)))

    def new(self) -> Iterator[Visit]:
        for key, part in self.read(self.visit.value).items():
            if key not in self.before:
                yield Visit(key, self.visit, Step("key", key))
            if part is not self.before.get(key, MISSING):
                yield Visit(part, self.visit, entry(self.visit, key))

    def put_back(self, places: Sequence[Visit]) -> None:
        for key in dict.fromkeys(place.step.key for place in places):
            if key in self.before:
                self.write(key, self.before[key])
            else:
                self.erase(key)

    @abstractmethod
    def write(self, key: Any, value: Any) -> None:
        """Hold a value under a key."""

    @abstractmethod
    def erase(self, key: Any) -> None:
        """Hold nothing under a key."""


class _Dictionary(_Mapping):
    @staticmethod
    def read(value: Any) -> dict[Any, Any]:
        return dict(_kind(value).items(value))

    def put_back(self, places: Sequence[Visit]) -> None:
        super().put_back(places)
        now = self.read(self.visit.value)
        ordered = [*(key for key in self.before if key in now), *(key for key in now if key not in self.before)]
        if any(map(operator.is_not, now, ordered)):
            _kind(self.visit.value).clear(self.visit.value)
            for key in ordered:
                self.write(key, now[key])

    def write(self, key: Any, value: Any) -> None:
        _kind(self.visit.value).__setitem__(self.visit.value, key, value)

    def erase(self, key: Any) -> None:
        _kind(self.visit.value).__delitem__(self.visit.value, key)


def _kind(value: Any) -> type[dict[Any, Any]]:
    """Whose methods read and write, past those of a subclass of the user's."""
    return OrderedDict if isinstance(value, OrderedDict) else dict


class _Class(_Mapping):
    @staticmethod
    def read(value: Any) -> dict[Any, Any]:
        return dict(vars(value))

    def new(self) -> Iterator[Visit]:
        yield from (
            Visit(p.value, self.visit, Step("attribute", p.step.key)) for p in super().new() if p.step[0] == "item"
        )

    def write(self, key: Any, value: Any) -> None:
        type.__setattr__(self.visit.value, key, value)

    def erase(self, key: Any) -> None:
        type.__delattr__(self.visit.value, key)


class _Slots(_Class):
    @staticmethod
    def read(value: Any) -> dict[Any, Any]:
        return dict(in_slots(value))

    def write(self, key: Any, value: Any) -> None:
        object.__setattr__(self.visit.value, key, value)

    def erase(self, key: Any) -> None:
        object.__delattr__(self.visit.value, key)


class _Defaults(_Slots):
    """Those of a function's parameters."""

    @staticmethod
    def read(value: Any) -> dict[Any, Any]:
        return {name: getattr(value, name) for name in ("__defaults__", "__kwdefaults__")}


def holders(visit: Visit) -> Iterator[Holder]:
    """The ways in which an object holds others, but for those that cannot change."""
    value = visit.value
    for kind, made in _KINDS:
        if isinstance(value, kind):
            if made is not None and (made is not _Array or value.dtype.hasobject):
                yield made(visit)
            break
    else:
        yield _Opaque(visit)
    if not isinstance(value, type) and type(value) not in BUILTIN and any(True for _ in in_slots(value)):
        yield _Slots(visit)


_FIXED = (tuple, frozenset, types.MethodType, types.BuiltinFunctionType, weakref.ref, Tensor)

_KINDS: tuple[tuple[Any, type[Holder] | None], ...] = (
    (_FIXED, None),
    (dict, _Dictionary),
    (list, _List),
    (deque, _Deque),
    (set, _Set),
    (types.FunctionType, _Defaults),
    (type, _Class),
    (types.CellType, _Cell),
    (functools._lru_cache_wrapper, _Cache),
    (np.ndarray, _Array),
)
