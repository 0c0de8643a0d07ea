"""Autocast during reads: a value is computed under the same autocast as in the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import fx

from sgc.graph.effects import AUTOCAST

_KINDS = ("cpu", "cuda", "xpu")
Switches = dict[str, tuple[bool, torch.dtype]]


def switches() -> Switches:
    """The present autocast settings by device type."""
    return {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _KINDS}


@contextmanager
def switched_back(before: Switches) -> Iterator[None]:
    """Restore earlier autocast settings inside."""
    with ExitStack() as stack:
        for kind, (enabled, dtype) in before.items():
            if (enabled, dtype) != (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)):
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
        yield


def close(graph: fx.Graph) -> None:
    """Exit the autocast regions that a part of a program enters and does not exit."""
    left = {node.args[0] for node in graph.find_nodes(op="call_function", target=AUTOCAST[1])}
    for node in reversed(graph.find_nodes(op="call_function", target=AUTOCAST[0])):
        if node not in left:
            graph.call_function(AUTOCAST[1], (node,))
