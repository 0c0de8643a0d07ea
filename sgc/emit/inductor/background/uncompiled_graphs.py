"""Runs a graph operator by operator for as long as it is not compiled yet."""

from __future__ import annotations

import torch
from torch import fx

from sgc.emit.fx.lazy_modules import write_python
from sgc.emit.fx.rewriting import copy_of
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.singular_matrices import failures_are_nan


def operator_by_operator(module: fx.GraphModule) -> Runner:
    """A callable that computes what the compiled module will compute: from the same random numbers, to rounding."""
    module = copy_of(module)
    failures_are_nan(module, validates=False)
    write_python(module)
    run: Runner = torch.no_grad()(module.forward)
    return run
