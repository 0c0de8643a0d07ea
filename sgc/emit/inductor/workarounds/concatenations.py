"""What the workarounds share that are about pieces of concatenations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


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


def matrices() -> list[Tensor]:
    """Inputs of minimal programs: what is concatenated along the last dim, and what is multiplied with."""
    x = torch.linspace(0, 1, 40960).reshape(64, 64, 10)
    return [x, torch.linspace(0, 1, 4096).reshape(64, 64) / 64]
