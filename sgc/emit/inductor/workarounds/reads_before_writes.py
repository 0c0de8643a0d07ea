"""Computes what is written into a tensor, and where, before it is written.

Before it writes into a tensor Inductor (torch 2.11 to 2.14) computes what still reads that; but if what it writes is a
view of something that it has not computed yet (``x[1:] = x.flip(0)[:3]``, as a program without writes into views has
it: ``slice_scatter``, and a copy into the input), it has looked into that already: the tensor is read elsewhere while
it is written. Of ``v.index_put((index,), values)`` it does not compute the indices beforehand, if they are computed of
``v``, into which it writes where nobody reads it afterwards.

There is no option for it. The functions by which every copy and every ``index_put`` is made are replaced while a
program is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private, replaced


@contextmanager
def computed_before() -> Iterator[None]:
    """While this is entered, programs are generated in this way."""
    name_of = private("torch._inductor.ir:try_get_name")
    node_type = private("torch._inductor.ir:IRNode")

    def compute_readers(changed: Any, values: list[Any]) -> None:
        name = name_of(changed)
        for value in values:
            if isinstance(value, node_type) and name in value.get_read_names():
                value.realize()

    def with_values(mutate: Callable[..., Any]) -> Callable[..., Any]:
        def mutate_behind_reads(changed: Any, value: Any, *arguments: Any, **options: Any) -> Any:
            compute_readers(changed, [value])
            return mutate(changed, value, *arguments, **options)

        return mutate_behind_reads

    def with_indices(put: Callable[..., Any]) -> Callable[..., Any]:
        def put_behind_reads(changed: Any, indices: Any, value: Any, *arguments: Any, **options: Any) -> Any:
            compute_readers(changed, [*indices, value])
            return put(changed, indices, value, *arguments, **options)

        return put_behind_reads

    with replaced(
        {"torch._inductor.lowering:mutate_to": with_values, "torch._inductor.lowering:index_put_impl_": with_indices}
    ):
        yield


def _the_other_way_round(x: Tensor) -> list[Tensor]:
    x.copy_(torch.slice_scatter(x, (x.flip(0) * 2)[:3], 0, 1))
    return []


def _where_it_says_itself(x: Tensor) -> list[Tensor]:
    v = torch.cumsum(x, 0)
    return [v.index_put(((v[:, 0] * 3).long() % 4,), 0.5 * v, accumulate=True)]


WORKAROUND = Workaround(
    name="reads_before_writes",
    defect="a tensor is read for what is written into it, or for where, while it is written",
    reported="https://github.com/pytorch/pytorch/issues/197829, https://github.com/pytorch/pytorch/issues/198270, "
    "docs/upstream.md#indices-computed-of-what-they-are-for",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[
        MinimalProgram(each, lambda: [(torch.arange(16.0) * 7 % 16).reshape(4, 4) / 16])
        for each in (_the_other_way_round, _where_it_says_itself)
    ],
    patch=lambda module: computed_before(),
)
