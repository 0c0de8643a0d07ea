"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pytest
import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.optimize.pipeline import Report
from sgc.emit.stepping import BuiltStep
from sgc.run import specialization


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whole-step graphs run as they are: the same tracing, binding and guards, without seconds of C++ compilation."""

    def build_step(
        module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        return BuiltStep(module, Report(), list(tensors), rng, _run=torch.no_grad()(module.forward))

    monkeypatch.setattr(specialization, "build_step", build_step)
    yield
