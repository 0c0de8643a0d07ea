"""Switches workarounds and tunings off, for tests and benchmarks: users have no reason to.

What is off is part of the key of Inductor's cache (:mod:`sgc.emit.inductor.cache_key`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "_SGC_WITHOUT"
"""Names with commas between them: off in the whole process."""

_off: list[str] = [name for name in os.environ.get(_VARIABLE, "").split(",") if name]


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While this is entered, workarounds and tunings of these names are off, in all threads."""
    _off.extend(names)
    try:
        yield
    finally:
        for name in names:
            _off.remove(name)


def is_on(name: str) -> bool:
    """Whether nobody has switched it off."""
    return name not in _off


def switched_off() -> tuple[str, ...]:
    """The names of what is off, sorted."""
    return tuple(sorted(set(_off)))
