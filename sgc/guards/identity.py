"""What must be the very same objects as before, compared in loops that run in C."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(one) == len(other) and all(map(is_, one, other))


def twins(objects: Sequence[Any]) -> tuple[int, ...]:
    """For each object, the position at which it stands first: equal for two lists of which the same ones coincide."""
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(one), position) for position, one in enumerate(objects))
