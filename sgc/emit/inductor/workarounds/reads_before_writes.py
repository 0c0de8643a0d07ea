"""Keeps what reads a tensor behind the operator that writes into it, whatever is fused.

Inductor's scheduler gives memory a new name with each operator that writes into it, and readers afterwards wait for
that name. To fuse two loops on a CPU it may lay one of them out anew, and looks for the names that it reads anew, too:
those that they had at first (torch 2.11), or so unless the loop waits for something else besides (torch 2.13). Such a
loop reads what was in the memory before, of an in-place draw what was never written.

Before it writes into a tensor Inductor (torch 2.11 to 2.13) computes what still reads that; but if what it writes is a
view of something that it has not computed yet (``x[1:] = x.flip(0)[:3]``, as a program without writes into views has
it: ``slice_scatter``, and a copy into the input), it has looked into that already: the tensor is read elsewhere while
it is written. Of ``v.index_put((index,), values)`` it does not compute the indices beforehand, if they are computed of
``v``, into which it writes where nobody reads it afterwards. Plain ``torch.compile`` errs there, too. Here what is
written, and where, is computed first if it reads that tensor.

There is no option for any of this. A method of the scheduler's, and the functions by which every copy and every
``index_put`` is made, are replaced while a program is generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.utils._ordered_set import OrderedSet


@contextmanager
def reads_follow_writes() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    from torch._inductor import ir, lowering
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch._inductor.scheduler import SchedulerNode

    recompute = SchedulerNode.recompute_size_and_body

    def recompute_and_rename(self: Any, *arguments: Any, **options: Any) -> None:
        waits = OrderedSet(dep for dep in self.read_writes.reads if isinstance(dep, (StarDep, WeakDep)))
        recompute(self, *arguments, **options)
        self.set_read_writes(self.read_writes.with_read(waits).rename(self.mutation_renames))

    def compute_readers(changed: Any, values: list[Any]) -> None:
        name = ir.try_get_name(changed)
        for value in values:
            if isinstance(value, ir.IRNode) and name in value.get_read_names():
                value.realize()

    mutate: Any = lowering.mutate_to

    def mutate_behind_reads(changed: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        compute_readers(changed, [value])
        return mutate(changed, value, *arguments, **options)

    put: Any = lowering.index_put_impl_

    def put_behind_reads(changed: Any, indices: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        compute_readers(changed, [*indices, value])
        return put(changed, indices, value, *arguments, **options)

    with (
        mock.patch.object(SchedulerNode, "recompute_size_and_body", recompute_and_rename),
        mock.patch.object(lowering, "mutate_to", mutate_behind_reads),
        mock.patch.object(lowering, "index_put_impl_", put_behind_reads),
    ):
        yield
