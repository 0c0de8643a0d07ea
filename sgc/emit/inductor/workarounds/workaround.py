"""The record of a workaround."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.inductor.compilation import Compilation
from sgc.native.switches import is_on


@dataclass(frozen=True)
class MinimalProgram:
    """A program that errs under Inductor without the workaround.

    :param function: takes tensors, and returns a list of tensors.
    :param inputs: makes examples of them, the same each time.
    :param others: makes inputs of further calls, as shapes are examples, too; of a call like the first one by default.
    :param rng: the option that it is compiled with.
    :param in_one_piece: likewise.
    :param device: where it errs.
    :param may_crash: whether it may end its process without the workaround: it writes into memory that was given away.
    :param right_on: releases on which this one does not err, while others of the workaround do.
    """

    function: Callable[..., list[Tensor]]
    inputs: Callable[[], list[Tensor]]
    others: Callable[[], list[Tensor]] | None = None
    rng: Rng = "torch"
    in_one_piece: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    may_crash: bool = False
    right_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workaround:
    """One defect of torch, and what is done about it.

    :param name: that of its file.
    :param defect: what torch does wrong, in a line.
    :param reported: where that was reported; a section of ``docs/upstream.md`` if nowhere.
    :param seen: the releases of torch on which minimal programs err.
    :param programs: minimal programs, each of which errs without it and is right with it.
    :param mended: the first release of torch that does not need it; None if there is none yet.
    :param wrong_without: whether results may be wrong without it; else a program is refused, by an error.
    :param rewrite: changes the graph, in place.
    :param options: options of Inductor, for whatever it compiles.
    :param patch: replaces private attributes of torch while a program is generated.
    :param only_if: which compilations it concerns.
    """

    name: str
    defect: str
    reported: str
    seen: tuple[str, ...]
    programs: Sequence[MinimalProgram]
    mended: str | None = None
    wrong_without: bool = True
    rewrite: Callable[[fx.GraphModule], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    patch: Callable[[fx.GraphModule], AbstractContextManager[None]] | None = None
    only_if: Callable[[Compilation], bool] = lambda compilation: True

    @property
    def is_needed(self) -> bool:
        """Whether this release of torch errs, as far as is known."""
        return self.mended is None or torch.__version__ < self.mended  # compares as versions

    def concerns(self, compilation: Compilation) -> bool:
        """Whether it is applied to a compilation."""
        return self.is_needed and is_on(self.name) and self.only_if(compilation)
