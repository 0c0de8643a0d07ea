"""Keeps Inductor from giving away the memory of a concatenation while a piece of it is needed.

Inductor (torch 2.11 to 2.13) computes what is concatenated into its place in the whole, and errs in three ways, without
a sign. If the last one to read the whole reads one piece of it, the result is written over that piece
(``inplace_buffers``); and the memory of the whole, which nobody reads any more, goes to another buffer while the result
is still needed. A concatenation of three operands and a product of matrices are enough, in plain ``torch.compile`` too.
And where memory is laid out beforehand (``memory_planning``), a view of a piece may be a result of the program: of the
whole it is only known that nobody frees it, and its memory counts as free from the start. And a piece that an operator
has written into (``index_put``, into its own copy) has another name from then on, by which nobody finds the whole: that
is freed after its own last reader, although the piece is read later.

Here a buffer that is a piece of another is never written over, what a result shares memory with is a result, and what
reads a piece reads the whole. There is no option for any of it but to do without; methods of Inductor's are replaced
while a program is generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.utils._ordered_set import OrderedSet


@contextmanager
def pieces_kept() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    from torch._inductor.codegen.memory_planning import MemoryPlanner
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.ir import NonOwningLayout
    from torch._inductor.scheduler import BaseSchedulerNode, SchedulerBuffer
    from torch._inductor.virtualized import V

    can_reuse: Any = PythonWrapperCodegen.can_reuse

    def can_reuse_whole(self: Any, buffer: Any, *others: Any) -> bool:
        # Only the scheduler asks this of its own buffers, before it writes over one; others ask what is to be freed.
        is_piece = isinstance(buffer, SchedulerBuffer) and isinstance(buffer.node.get_output_spec(), NonOwningLayout)
        return not is_piece and can_reuse(self, buffer, *others)

    compute_groups: Any = MemoryPlanner.compute_buffer_groups

    def compute_groups_of_wholes(self: Any, lines: Any) -> Any:
        groups = compute_groups(self, lines)
        for name in _behind(V.graph.get_output_names()):
            if name in groups:
                groups[name].is_output = True
        return groups

    used_names: Any = BaseSchedulerNode.used_or_aliased_buffer_names

    def used_names_of_wholes(self: Any) -> Any:
        return OrderedSet(_behind(used_names(self)))

    with (
        mock.patch.object(BaseSchedulerNode, "used_or_aliased_buffer_names", used_names_of_wholes),
        mock.patch.object(PythonWrapperCodegen, "can_reuse", can_reuse_whole),
        mock.patch.object(MemoryPlanner, "compute_buffer_groups", compute_groups_of_wholes),
    ):
        yield


def _behind(names: Iterable[str]) -> Iterator[str]:
    """The names of buffers, and of those with which these share memory."""
    from torch._inductor.virtualized import V

    ahead, seen = list(names), set()
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            yield name
            buffer = V.graph.name_to_buffer.get(name)
            if buffer is not None:
                ahead += [*buffer.get_inputs_that_alias_output(), *buffer.get_mutation_names()]
