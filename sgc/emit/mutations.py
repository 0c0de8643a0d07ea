"""Keeps what reads a tensor behind the operator that writes into it, whatever is fused.

Inductor's scheduler gives memory a new name with each operator that writes into it, and readers afterwards wait for
that name. To fuse two loops on a CPU it may lay one of them out anew, and looks for the names that it reads anew, too:
those that they had at first (torch 2.11), or so unless the loop waits for something else besides (torch 2.13). Such a
loop reads what was in the memory before, of an in-place draw what was never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.utils._ordered_set import OrderedSet


@contextmanager
def reads_follow_writes() -> Iterator[None]:
    """While this is entered, loops that are laid out anew wait for the same operators as before."""
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch._inductor.scheduler import SchedulerNode

    recompute = SchedulerNode.recompute_size_and_body

    def recompute_and_rename(self: Any, *arguments: Any, **options: Any) -> None:
        waits = OrderedSet(dep for dep in self.read_writes.reads if isinstance(dep, (StarDep, WeakDep)))
        recompute(self, *arguments, **options)
        self.set_read_writes(self.read_writes.with_read(waits).rename(self.mutation_renames))

    with mock.patch.object(SchedulerNode, "recompute_size_and_body", recompute_and_rename):
        yield
