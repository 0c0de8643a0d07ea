"""Keeps Inductor from writing over a piece of a concatenation, whose memory it may then give away.

Inductor (torch 2.11 to 2.13) computes what is concatenated into its place in the whole. If the last one to read the
whole reads one piece of it, the result is written over that piece (``inplace_buffers``); and the memory of the whole,
which nobody reads any more, goes to another buffer while the result is still needed: wrong numbers, without a sign. A
concatenation of three operands and a product of matrices are enough, in plain ``torch.compile`` too. Here a buffer that
is a piece of another is never written over. There is no option for it but to write over nothing; a method of Inductor's
is replaced while a program is generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def pieces_kept() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.ir import NonOwningLayout
    from torch._inductor.scheduler import SchedulerBuffer

    can_reuse: Any = PythonWrapperCodegen.can_reuse

    def can_reuse_whole(self: Any, buffer: Any, *others: Any) -> bool:
        # Only the scheduler asks this of its own buffers, before it writes over one; others ask what is to be freed.
        is_piece = isinstance(buffer, SchedulerBuffer) and isinstance(buffer.node.get_output_spec(), NonOwningLayout)
        return not is_piece and can_reuse(self, buffer, *others)

    with mock.patch.object(PythonWrapperCodegen, "can_reuse", can_reuse_whole):
        yield
