"""What is compiled, as workarounds and tunings see it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from sgc.config import Rng


@dataclass(frozen=True)
class Compilation:
    """A module on its way to Inductor.

    :param module: a graph of aten operators that returns a list; rewrites change it in place.
    :param rng: whose random numbers are drawn.
    :param on_cpu: whether all of it is on the CPU.
    :param in_one_piece: whether its results may lie in one piece of memory, with all that is computed on the way.
    """

    module: fx.GraphModule
    rng: Rng
    on_cpu: bool
    in_one_piece: bool = False
