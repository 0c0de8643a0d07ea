"""What is compiled, as workarounds and tunings see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx

from sgc.config import Rng

Draws = Literal["free", "checked", "ordered"]
"""Draws are taken in any order, and those that nobody reads are left out; or it is an error if that order is not the
graph's; or they are kept in it."""


@dataclass(frozen=True)
class Compilation:
    """A module on its way to Inductor.

    :param module: a graph of aten operators that returns a list; rewrites change it in place.
    :param rng: whose random numbers are drawn.
    :param on_cpu: whether all of it is on the CPU.
    :param in_one_piece: whether its results may lie in one piece of memory, with all that is computed on the way.
    :param draws: in which order they are taken.
    """

    module: fx.GraphModule
    rng: Rng
    on_cpu: bool
    in_one_piece: bool = False
    draws: Draws = "free"
