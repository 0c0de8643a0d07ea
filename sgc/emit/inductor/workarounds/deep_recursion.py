"""Lets Inductor lay out the memory of long chains, which it does recursively.

Each buffer of a chain takes some ten calls within calls (torch 2.11 to 2.14). There is no option for it; Python allows
as many as are needed while a program is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround

_DEEPEST = 20_000
"""How deep Python lets calls be nested meanwhile."""


@contextmanager
def deep_recursion() -> Iterator[None]:
    """While this is entered, Python allows deep recursion."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _there_and_back(x: Tensor) -> list[Tensor]:
    """Each product is kept until it is used on the way back."""
    kept = [x]
    for _ in range(300):
        kept.append(kept[-1] @ x)
    y = x
    for product in reversed(kept):
        y = product @ y
    return [y]


WORKAROUND = Workaround(
    name="deep_recursion",
    defect="with memory_planning, a long chain is a RecursionError",
    reported="docs/upstream.md#the-memory-of-a-long-chain",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_there_and_back, lambda: [torch.eye(3)])],
    wrong_without=False,
    patch=lambda module: deep_recursion(),
)
