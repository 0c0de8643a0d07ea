"""Numbers beside a complex tensor without dimensions, which Inductor's C++ takes for tensors of double precision.

In torch ``z * 0.1`` is of the type of ``z``. Inductor has no loops for complex tensors and calls torch's operators, for
which its C++ makes a tensor of the number. Where ``z`` has no dimensions either, the type of that tensor counts: the
result is complex128, and what follows reads its memory as complex64.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import call, tensor_of
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround

_aten = torch.ops.aten
_ARITHMETIC = {_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor}


def type_numbers(module: fx.GraphModule) -> None:
    """Have operators on complex tensors without dimensions take numbers as tensors of their own type, in place."""
    for node in module.graph.nodes:
        value = tensor_of(node) if node.target in _ARITHMETIC else None
        if value is None or not value.is_complex() or value.dim():
            continue
        for position, argument in enumerate(node.args):
            if not isinstance(argument, fx.Node):
                typed = call(node, _aten.full.default, [], argument, dtype=value.dtype, device=value.device)
                node.update_arg(position, typed)
    module.recompile()


def _tenth(a: Tensor, b: Tensor) -> list[Tensor]:
    return [torch.view_as_real(torch.complex(a, b) * 0.1)]


WORKAROUND = Workaround(
    name="complex_numbers",
    defect="the C++ wrapper multiplies a complex64 tensor without dimensions by a number to a complex128 one",
    reported="docs/upstream.md#numbers-beside-complex-tensors-without-dimensions",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_tenth, lambda: [torch.tensor(0.3), torch.tensor(1.1)])],
    rewrite=type_numbers,
)
