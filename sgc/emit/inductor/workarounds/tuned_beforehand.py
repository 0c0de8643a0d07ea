"""Has kernels for a GPU tuned in their first run, on what they are for.

``standalone_compile`` (torch 2.11 to 2.13) has them tuned beforehand, on random inputs: as indices these are out of
bounds, and a kernel that asserts that they are not ends all computation on the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround


def _looked_up(table: Tensor, x: Tensor) -> list[Tensor]:
    """The index is computed by a kernel of its own."""
    index = (x @ x).round().to(torch.int64)
    return [table[index % len(table)].sum(), table[index[0]] * 2]


def _inputs() -> list[Tensor]:
    return [torch.arange(12.0, device="cuda").reshape(4, 3), torch.eye(4, device="cuda")]


WORKAROUND = Workaround(
    name="tuned_beforehand",
    defect="kernels for a GPU are tuned on random inputs, as indices out of bounds, which ends all work on the GPU",
    reported="https://github.com/pytorch/pytorch/issues/194018",
    seen=("2.11",),
    programs=[MinimalProgram(_looked_up, _inputs, rng="fast", device="cuda")],
    options={"triton.autotune_at_compile_time": False},
    only_if=lambda compilation: not compilation.on_cpu,
)
