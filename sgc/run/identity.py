"""What must be the very same objects as before, compared in loops that run in C."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(one) == len(other) and all(map(is_, one, other))
