"""Tests of what only a GPU has; elsewhere they are skipped.

Much of the suite runs there as well, on tensors of the GPU (CONTRIBUTING.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def tensors_on_the_gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    with torch.device("cuda"):
        yield
