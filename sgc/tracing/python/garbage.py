"""Python's garbage, while a program is captured and compiled."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 100_000
"""Objects made since the last collection before the next: graphs are made of many that stay."""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Look for garbage less often: the search takes a tenth of the time of a compilation, and finds little."""
    before = gc.get_threshold()
    gc.set_threshold(max(_YOUNG, before[0]) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
