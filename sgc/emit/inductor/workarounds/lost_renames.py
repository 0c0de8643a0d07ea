"""Keeps what reads a tensor behind the operator that writes into it, whatever is fused.

Inductor's scheduler gives memory a new name with each operator that writes into it, and readers afterwards wait for
that name. To fuse two loops on a CPU it may lay one of them out anew, and looks for the names that it reads anew, too:
those that they had at first (torch 2.11), or so unless the loop waits for something else besides (torch 2.13). Such a
loop reads what was in the memory before, of an in-place draw what was never written.

There is no option for it. A method of the scheduler's is replaced while a program is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._ordered_set import OrderedSet

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private, replaced


@contextmanager
def names_kept() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    orders = (
        private("torch._inductor.dependencies:StarDep"),
        private("torch._inductor.dependencies:WeakDep"),
    )

    def with_names(recompute: Callable[..., None]) -> Callable[..., None]:
        def recompute_and_rename(self: Any, *arguments: Any, **options: Any) -> None:
            waits = OrderedSet(dep for dep in self.read_writes.reads if isinstance(dep, orders))
            recompute(self, *arguments, **options)
            self.set_read_writes(self.read_writes.with_read(waits).rename(self.mutation_renames))

        return recompute_and_rename

    with replaced({"torch._inductor.scheduler:SchedulerNode.recompute_size_and_body": with_names}):
        yield


def _attention(x: Tensor) -> list[Tensor]:
    scale = torch.randn(())
    weights = torch.softmax(x @ x.mT, -1)
    return [weights * torch.empty_like(weights).bernoulli_(0.9) @ x * scale, weights]


WORKAROUND = Workaround(
    name="lost_renames",
    defect="a loop that is laid out anew to be fused reads memory from before an operator that writes into it",
    reported="docs/upstream.md#a-loop-that-is-laid-out-anew",
    seen=("2.11", "2.12", "2.13"),
    programs=[MinimalProgram(_attention, lambda: [torch.linspace(-1, 1, 20).reshape(5, 4)])],
    patch=lambda module: names_kept(),
)
