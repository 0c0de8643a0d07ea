"""Keeps the memory of a concatenation of which a piece is read under another name.

A piece of a concatenation that an operator has written into (``index_put``, into its own copy) has another name from
then on, by which Inductor (torch 2.11 to 2.14) does not find the whole: that is freed after its own last reader,
although the piece is read later.

Here what reads a piece reads the whole. There is no option for it; a method of Inductor's is replaced while a program
is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._ordered_set import OrderedSet

from sgc.emit.inductor.workarounds.concatenations import names_behind
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private, replaced


@contextmanager
def wholes_are_read() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    virtualized = private("torch._inductor.virtualized:V")

    def with_wholes(used_names: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self: OrderedSet(names_behind(virtualized.graph, used_names(self)))

    with replaced({"torch._inductor.scheduler:BaseSchedulerNode.used_or_aliased_buffer_names": with_wholes}):
        yield


def _written_into(x: Tensor) -> list[Tensor]:
    piece = x.index_put((torch.tensor([1, 2, 3, 1]),), x[:4], accumulate=True)
    y = (torch.cat([piece, *[(x + k).sin() for k in range(9)]]) @ x @ x).cumsum(0) @ x
    return [y, piece * y[:48]]


WORKAROUND = Workaround(
    name="pieces_written_into",
    defect="the memory of a concatenation is freed while a piece that was written into is still read",
    reported="docs/upstream.md#a-piece-of-a-concatenation-that-is-written-into",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_written_into, lambda: [torch.linspace(0, 1, 2304).reshape(48, 48) / 48], may_crash=True)],
    patch=lambda module: wholes_are_read(),
)
