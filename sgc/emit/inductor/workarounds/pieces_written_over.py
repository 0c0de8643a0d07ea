"""Keeps Inductor from writing over a piece of a concatenation.

Inductor (torch 2.11 to 2.14) computes what is concatenated into its place in the whole. If the last one to read the
whole reads one piece of it, the result is written over that piece (``inplace_buffers``); and the memory of the whole,
which nobody reads any more, goes to another buffer while the result is still needed.

Here a buffer that is a piece of another is never written over. There is no option but to write over nothing; a method
of Inductor's is replaced while a program is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.concatenations import matrices
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private, replaced


@contextmanager
def pieces_kept() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    piece_layout = private("torch._inductor.ir:NonOwningLayout")
    scheduler_buffer = private("torch._inductor.scheduler:SchedulerBuffer")

    def unless_a_piece(can_reuse: Callable[..., bool]) -> Callable[..., bool]:
        def can_reuse_whole(self: Any, buffer: Any, *others: Any) -> bool:
            # The scheduler asks this of its own buffers, before it writes over one; others ask what to free.
            is_piece = isinstance(buffer, scheduler_buffer) and isinstance(buffer.node.get_output_spec(), piece_layout)
            return not is_piece and can_reuse(self, buffer, *others)

        return can_reuse_whole

    with replaced({"torch._inductor.codegen.wrapper:PythonWrapperCodegen.can_reuse": unless_a_piece}):
        yield


def _written_over(x: Tensor, w: Tensor) -> list[Tensor]:
    pieces = [x[:, :, k].sin() for k in range(10)]
    y = torch.cat(pieces, 0) @ w
    c = pieces[3] * y[:64]
    d = (c @ w).repeat(10, 1) + y
    e = d @ w
    return [c @ e[:64]]


WORKAROUND = Workaround(
    name="pieces_written_over",
    defect="a piece of a concatenation is written over by what reads it last, and its memory given away",
    reported="docs/upstream.md#a-piece-of-a-concatenation-that-is-written-over",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_written_over, matrices, may_crash=True)],
    patch=lambda module: pieces_kept(),
)
