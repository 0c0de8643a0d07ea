"""Keeps Inductor's table of the types that operators give, instead of making it for each operator.

Inductor (torch 2.11 to 2.13) has one object that knows the type of each operator's result, and asks for it by its
class, whose ``__init__`` fills the table anew each time: a third of a millisecond for each operator of a kernel, a
twentieth of the time to generate a program. There is no option for it; ``__init__`` is replaced while a program is
generated, by one that fills the table once. What it is made of does not change meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sgc.emit.inductor.tuning.tuning import Tuning
from sgc.native.private_attributes import replaced


@contextmanager
def one_table() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    filled: list[Any] = []

    def filling_once(fill: Callable[[Any], None]) -> Callable[[Any], None]:
        def fill_once(self: Any) -> None:
            if not any(self is known for known in filled):
                fill(self)
                filled.append(self)

        return fill_once

    with replaced({"torch._inductor.dtype_propagation:DtypePropagationOpsHandler.__init__": filling_once}):
        yield


TUNING = Tuning(
    name="operator_types",
    what="the table of operators' types is made once for a program, not for each of its operators",
    faster="compilation",
    device="any",
    patch=one_table,
)
