"""The tensors that a loss can be differentiated in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def leaves_of(surrogate: Any) -> Iterator[Tensor]:
    """The leaves of an autograd graph, each once."""
    seen: set[Any] = set()
    stack = [getattr(surrogate, "grad_fn", None)]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)
