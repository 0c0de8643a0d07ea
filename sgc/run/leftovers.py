"""Takes the traced tensors away that a capture has left in a program's objects, lists and names."""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import pyro
from torch import Tensor

from sgc.capturing import tracer
from sgc.run.notes import LONGEST, MISSING, contents

Place = tuple[Any, Any, Any]
"""A holder, the key or name of a value in it (None in a cell), and that value."""


class Leftovers:
    """What was in some places before a capture, to be put back where there is a traced tensor after it."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = list(places)
        found: dict[int, list[Any] | deque[Any] | dict[Any, Any]] = {}
        for _, _, value in self._places:
            found.update((id(container), container) for container in _containers(value, 0))
        self._copies = [(container, container.copy()) for container in found.values()]

    def put_back(self) -> None:
        """Put it back."""
        for holder, key, value in self._places:
            if _is_traced(read(holder, key)):
                _write(holder, key, value)
        for container, copy in self._copies:
            if isinstance(container, dict) and isinstance(copy, dict):
                if any(map(_is_traced, container.values())):
                    container.clear()
                    container.update(copy)
            elif not isinstance(container, dict) and any(map(_is_traced, container)):
                container.clear()
                container.extend(copy)


def of_parameters() -> Iterator[Place]:
    """What is noted on the parameters in Pyro's store: a plate with a subsample notes its indices there."""
    for parameter in pyro.get_param_store()._params.values():
        noted = vars(parameter)
        yield from ((noted, key, value) for key, value in noted.items())


def read(holder: Any, key: Any) -> Any:
    """What is in a place, :data:`MISSING` where nothing is."""
    if key is None:
        return contents(holder)
    if isinstance(holder, (dict, types.MappingProxyType)):
        return holder.get(key, MISSING)
    return holder[key] if isinstance(holder, tuple) else getattr(holder, key, MISSING)


def _write(holder: Any, key: Any, value: Any) -> None:
    if key is None:
        if value is MISSING:
            del holder.cell_contents
        else:
            holder.cell_contents = value
    elif isinstance(holder, dict) and value is MISSING:
        del holder[key]
    elif isinstance(holder, dict):
        holder[key] = value
    elif value is MISSING:
        object.__delattr__(holder, key)
    else:
        object.__setattr__(holder, key, value)


def _is_traced(value: Any) -> bool:
    return isinstance(value, Tensor) and tracer.is_fake(value)


_KINDS = frozenset((list, tuple, deque, dict, OrderedDict, defaultdict))


def _containers(value: Any, depth: int) -> Iterator[Any]:
    """The lists, queues and dictionaries in a value."""
    if type(value) in _KINDS and len(value) <= LONGEST and depth < 3:
        if type(value) is not tuple:
            yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _containers(part, depth + 1)
