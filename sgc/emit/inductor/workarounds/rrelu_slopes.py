"""Has torch draw the slopes of a randomised leaky ReLU, where Inductor would draw others.

Inductor (torch 2.11 and 2.12) writes ``rrelu_with_noise`` as arithmetic on uniform numbers of its own, although it is
told to draw as torch does (``fallback_random``): the slopes are others, and so is every number that is drawn later.
There is no option for it; its rule is taken from the table of decompositions while a program is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround
from sgc.native.private_attributes import private

_OPERATOR = torch.ops.aten.rrelu_with_noise_functional.default


@contextmanager
def slopes_of_torch() -> Iterator[None]:
    """While this is entered, the operator is called as it is."""
    rules = private("torch._inductor.decomposition:decompositions")
    rule = rules.pop(_OPERATOR, None)
    try:
        yield
    finally:
        if rule is not None:
            rules[_OPERATOR] = rule


def _leaky(x: Tensor) -> list[Tensor]:
    return [torch.nn.functional.rrelu(x, training=True), torch.rand(2)]


WORKAROUND = Workaround(
    name="rrelu_slopes",
    defect="with fallback_random, `rrelu` draws other slopes than eager torch",
    reported="docs/upstream.md#slopes-of-a-randomised-leaky-relu",
    seen=("2.11", "2.12"),
    mended="2.13",
    programs=[MinimalProgram(_leaky, lambda: [torch.tensor([-0.2, -0.3, -0.1])])],
    patch=lambda module: slopes_of_torch(),
    only_if=lambda compilation: compilation.rng == "torch" or compilation.draws != "free",
)
