"""Fixtures of the training tests."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Sequence

import pytest
import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.inductor.compiled_step import BuiltStep
from sgc.emit.rewrites.optimize import Report
from sgc.runtime import specialization


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whole-step graphs run as they are: the same tracing, binding and guards, without seconds of C++ compilation."""

    def build_step(
        module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        return BuiltStep(module, Report(), list(tensors), rng, _run=torch.no_grad()(module.forward))

    monkeypatch.setattr(specialization, "build_step", build_step)
    yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as Python has it. In a process that a shell runs in the background, the signal is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
