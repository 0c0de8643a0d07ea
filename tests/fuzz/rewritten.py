"""Lets sgc run the graphs that it gives to Inductor operator by operator instead, after all its rewrites."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends.registry import Built
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.rewrites.optimize import Report, optimize
from sgc.runtime import specialization


def _prepared(module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng) -> tuple[fx.GraphModule, Any, list[Tensor]]:
    examples = [tensor.detach() for tensor in tensors]
    made = optimize(module, examples, rng=rng).module
    return made, torch.no_grad()(made.forward), examples


def _build(module: fx.GraphModule, tensors: Sequence[Tensor], backend: str, rng: Rng) -> Built:
    made, run, _ = _prepared(module, tensors, rng)
    return Built(run, made, Report())


def _build_step(
    module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
) -> BuiltStep:
    made, run, examples = _prepared(module, tensors, rng)
    return BuiltStep(made, Report(), examples, rng, _run=run)


@contextmanager
def run_rewritten(wanted: bool) -> Iterator[None]:
    """Within, the "inductor" backend compiles nothing; nothing is changed if it is not ``wanted``."""
    if not wanted:
        yield
        return
    with (
        mock.patch.object(specialization, "build", _build),
        mock.patch.object(specialization, "build_step", _build_step),
    ):
        yield
