"""Lets go of generated source code.

``torch.fx`` registers the Python of each graph module that it compiles, for tracebacks, and never forgets it: some 4 kB
a module. What belongs to a specialization is forgotten with it.
"""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Iterable

from torch.fx import graph_module


def known_sources() -> frozenset[str]:
    """The names of all sources that are registered now."""
    return frozenset(graph_module._loader.eval_cache)


def forget_with(owner: object, known: frozenset[str]) -> None:
    """Forget, when ``owner`` is collected, every source that was registered since ``known`` was taken."""
    new = [name for name in graph_module._loader.eval_cache if name not in known]
    weakref.finalize(owner, _forget, new).atexit = False


def _forget(names: Iterable[str]) -> None:
    for name in names:
        graph_module._loader.eval_cache.pop(name, None)
        linecache.cache.pop(name, None)
