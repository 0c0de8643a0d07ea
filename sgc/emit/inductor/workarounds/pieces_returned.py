"""Keeps the memory of a concatenation of which a piece is a result.

Where Inductor (torch 2.11 to 2.13) lays memory out beforehand (``memory_planning``), a view of a piece of a
concatenation may be a result of the program: of the whole it is only known that nobody frees it, and its memory counts
as free from the start.

Here what a result shares memory with is a result. There is no option for it; a method of Inductor's is replaced while a
program is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.concatenations import matrices, names_behind
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private, replaced


@contextmanager
def wholes_are_results() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    virtualized = private("torch._inductor.virtualized:V")

    def with_wholes(compute_groups: Callable[..., Any]) -> Callable[..., Any]:
        def compute_groups_of_wholes(self: Any, lines: Any) -> Any:
            groups = compute_groups(self, lines)
            for name in names_behind(virtualized.graph, virtualized.graph.get_output_names()):
                if name in groups:
                    groups[name].is_output = True
            return groups

        return compute_groups_of_wholes

    with replaced({"torch._inductor.codegen.memory_planning:MemoryPlanner.compute_buffer_groups": with_wholes}):
        yield


def _returned(x: Tensor, w: Tensor) -> list[Tensor]:
    pieces = [x[:, :, k].sin() for k in range(10)]
    y = torch.cat(pieces, 0) @ w
    z = (y @ w).exp() @ w
    return [z.sum(), pieces[3][1:], (z * 2).cos().sum()]


WORKAROUND = Workaround(
    name="pieces_returned",
    defect="with memory_planning, the memory of a concatenation of which a piece is returned is given away",
    reported="docs/upstream.md#a-piece-of-a-concatenation-that-is-returned",
    seen=("2.11", "2.12", "2.13"),
    programs=[MinimalProgram(_returned, matrices, may_crash=True)],
    patch=lambda module: wholes_are_results(),
)
