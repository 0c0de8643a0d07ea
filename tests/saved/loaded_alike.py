"""A loss from a file, compared with the one that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest

import sgc


def loaded_alike(module: sgc.LossModule, path: Path, *args: Any) -> sgc.LoadedLoss:
    """Save a loss and load it; under one seed both give the same for a call."""
    sgc.save(module, path)
    loaded = sgc.load(path)
    losses = []
    for each in (module, loaded):
        pyro.set_rng_seed(1)
        losses.append(float(each(*args)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    return loaded
