"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx

from sgc.emit.backends import Built
from sgc.emit.optimize.pipeline import Report
from sgc.run import specialization


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whole-step graphs run as they are: the same tracing, binding and guards, without seconds of C++ compilation."""

    def build(module: fx.GraphModule, *_: Any) -> Built:
        return Built(torch.no_grad()(module.forward), module, Report())

    monkeypatch.setattr(specialization, "build", build)
    yield
