"""What a program takes from around it: globals, closures and attributes, besides its arguments.

A capture burns plain Python values in. Were one rebound later (an annealed ``self.beta``, a global tensor), the
compiled program would be stale; so the values that the code of model and guide can name are noted, and compared
at each call. Tensors and numbers in some places are inputs instead: of these only the kind is noted.
"""

from __future__ import annotations

import os
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from sgc.guards.environment.environment_walk import CONTAINERS, Walk, is_library
from sgc.guards.environment.iterators import progress
from sgc.guards.hooks import GLOBAL_HOOKS
from sgc.guards.miss import NO_REASONS, Miss, with_reasons
from sgc.guards.snapshots import (
    Free,
    difference,
    is_immutable,
    labelled,
    loosened,
    moved,
    note,
    still_holds,
    tensors_in,
)
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.tracing.state.external_reads import ExternalReads
from sgc.tracing.state.places import Place, is_number, look_up, read_of
from sgc.tracing.state.random_state import state_of
from sgc.tracing.state.value_parts import MISSING, PLAIN

_VARIABLES: dict[Any, Any] = vars(os.environ)["_data"]
"""The dictionary behind ``os.environ``, private to Python: of a dictionary C++ watches an entry that is not there."""


_REMEDY = "pass what changes from call to call as an argument, as a tensor, or keep a tensor or a number there"


class Environment(Walk):
    """A snapshot of the names that model and guide can reach.

    Containers are compared by what they hold (up to a thousand entries), all else first by identity. What the
    ``modules`` that it meets are made of is for others to watch.

    :param roots: model, guide, and objects among the arguments.
    :param reads: what a run of the program has asked for, by which names in code.
    :param moving: places whose tensors and numbers are inputs.
    """

    def __init__(self, *roots: Any, reads: ExternalReads, moving: Collection[Place] = ()) -> None:
        super().__init__(reads)
        self._moving: dict[tuple[int, Any], list[Place]] = {}
        for place in moving:
            if not place.is_argument:
                self._moving.setdefault((id(place.holder), place.key), []).append(place)
        self.free: dict[Place, Any] = {}
        """The places of inputs, with what is there now."""
        self._fixed: list[tuple[Any, Any, Any, Any]] = []
        self._changing: list[tuple[Any, Any, Any]] = []
        self._labels: dict[int, str] = {}
        for root in (*roots, *GLOBAL_HOOKS.values()):
            self.visit(root, "", 0)
        for name in reads.variables:
            key = os.environ.encodekey(name)
            self.note(_VARIABLES, key, _VARIABLES.get(key, MISSING), "os.environ: ", 0)
        for variable in reads.contexts.values():
            self.note(variable, None, variable.get(MISSING), f"ContextVar {variable.name}", 0)
        self._seen.clear()

    def conditions(self) -> list[Condition]:
        """Conditions that are true only if :meth:`changed` says None: names hold the very same objects."""
        own = [_is_same(holder, key, value) for holder, key, value, _ in self._fixed]
        for holder, key, noted in self._changing:
            own += still_holds(read_of(holder, key), noted)
        return own

    def changed(self, by_value: Mapping[Place, str] = NO_REASONS) -> Miss | None:
        """The name of a value that is not what it was, None if all are.

        :param by_value: why numbers in some places are the same at each call.
        """
        for holder, key, expected, noted in self._fixed:
            value = look_up(holder, key)
            if value is not expected:
                text = difference(self._label(holder, key), value, noted)
                if text is not None:
                    return Miss(text, self._label(holder, key), with_reasons(_REMEDY, by_value, holder, key))
        for holder, key, noted in self._changing:
            text = difference("", look_up(holder, key), noted)
            if text is not None:
                label = self._label(holder, key)
                return Miss(label + text, label, with_reasons(_REMEDY, by_value, holder, key))
        return None

    def moved(self) -> Iterator[Place]:
        """The places that hold another tensor or number than was noted, of the kind that was."""
        for holder, key, noted in (*((h, k, noted) for h, k, _, noted in self._fixed), *self._changing):
            value = look_up(holder, key)
            for path in moved(value, noted):
                yield Place(holder, key, path, labelled(self._label(holder, key), value, path))

    def tied(self, owned: Collection[int]) -> list[Place]:
        """The places of inputs whose tensors are known by other names, too, or owned by others.

        :param owned: the identities of tensors that others own.
        """
        known = {*owned, *self.tensors()}
        return [place for place, value in self.free.items() if id(value) in known]

    def tensors(self) -> set[int]:
        """The identities of the tensors that it has noted; those of inputs are not among them."""
        known = set[int]()
        for value, noted in (*((v, noted) for *_, v, noted in self._fixed), *((None, n) for *_, n in self._changing)):
            known.update(tensors_in(noted))
            if noted is value and isinstance(value, CONTAINERS):  # too long to be noted part by part
                known.update(map(id, value.values() if isinstance(value, dict) else value))
        return known

    def drawn(self) -> list[str]:
        """The names of the random generators that have been drawn from."""
        return [label for label, generator, state in self.generators if state_of(generator) != state]

    def taken(self) -> list[str]:
        """The names of the iterators and open files that items have been taken of."""
        return [label for label, iterator, place in self.iterators if progress(iterator) != place]

    def __len__(self) -> int:
        return len(self._fixed) + len(self._changing)

    def __iter__(self) -> Iterator[str]:
        """What is asked of each name in words, once where model and guide both use it."""
        yield from dict.fromkeys(self._in_words())

    def _in_words(self) -> Iterator[str]:
        for holder, key, expected, _ in self._fixed:
            if isinstance(expected, PLAIN):
                yield f"{self._label(holder, key)} == {expected!r}"
        for holder, key, _ in self._changing:
            value = look_up(holder, key)
            shown = f"== {value!r}" if _is_shown_by_repr(value) else f"holds what it held at capture ({len(value)})"
            yield f"{self._label(holder, key)} {shown}"
        for holder, key, expected, _ in self._fixed:
            if expected is not MISSING and not isinstance(expected, (*PLAIN, types.CodeType)):
                yield f"{self._label(holder, key)} is the object seen at capture"

    def _label(self, holder: Any, key: Any) -> str:
        prefix = self._labels.get(id(holder), "")
        return f"{prefix}{key}" if key is not None else prefix

    def note(self, holder: Any, key: Any, value: Any, label: str, depth: int) -> None:
        if isinstance(value, types.ModuleType) or (isinstance(value, type) and is_library(value)):
            return
        self._labels.setdefault(id(holder), label)
        noted = note(value, in_handlers=False)  # whose attributes have places of their own
        for place in self._moving.get((id(holder), key), ()):
            part = place.of(value)
            if is_number(part) or (isinstance(part, Tensor) and not (part.requires_grad and part.is_leaf)):
                noted = loosened(noted, place.path, Tensor if isinstance(part, Tensor) else type(part))
                self.free[place] = part
        if isinstance(value, CONTAINERS) and not is_immutable(noted):
            self._changing.append((holder, key, noted))
        elif not isinstance(noted, Free):  # a tensor guard asks for its kind
            self._fixed.append((holder, key, value, noted))
        self.visit(value, f"{label}{key or ''}", depth + 1)


def _is_shown_by_repr(value: Any) -> bool:
    """Whether a container holds plain values alone, or nothing, so that its ``repr`` says what they are."""
    if isinstance(value, dict):
        return all(map(_is_shown_by_repr, (*value, *value.values())))
    if isinstance(value, (list, tuple, deque, set, frozenset)):
        return all(map(_is_shown_by_repr, value))
    return isinstance(value, (*PLAIN, *CONTAINERS))


def _is_same(holder: Any, key: Any, value: Any) -> Condition:
    if value is not MISSING:
        return conditions.is_same(read_of(holder, key), value)
    return (
        conditions.absent(conditions.entry(holder, key))
        if type(holder) is dict
        else conditions.is_same(conditions.result(look_up, holder, key), value)
    )
