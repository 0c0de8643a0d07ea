"""The names that Inductor gives to memory, for the workarounds that ask who shares it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def names_behind(graph: Any, names: Iterable[str]) -> Iterator[str]:
    """The names of buffers of a graph that is lowered (``GraphLowering``), and of what they share memory with."""
    ahead, seen = list(names), set()
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            yield name
            buffer = graph.name_to_buffer.get(name)
            if buffer is not None:
                ahead += [*buffer.get_inputs_that_alias_output(), *buffer.get_mutation_names()]
