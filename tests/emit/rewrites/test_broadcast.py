"""What many elements use is computed once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

STEP = torch.tensor(3.0)
WEIGHTS = torch.arange(1024.0).reshape(32, 32)


def stored(function: object, *examples: Tensor) -> list[str]:
    """The nodes that get memory of their own."""
    module = traced(function, *examples)  # type: ignore[arg-type]
    before = results(module, *examples)
    changed = apply("compute_once", module)
    assert equal(results(module, *examples), before)
    found = [line.partition("as_strided(")[2].partition(",")[0] for line in lines(module) if "as_strided(" in line]
    assert changed == bool(found)
    return found


def test_a_bias_correction() -> None:
    """The last operator before the broadcast, so that all of the arithmetic on one number is done once."""
    assert stored(lambda step, w: [w / (1 - 0.9**step).sqrt()], STEP, WEIGHTS) == ["sqrt"]


def test_through_a_view() -> None:
    """Rows of one tensor: that tensor is stored, once."""
    steps = torch.tensor([3.0, 4.0])

    def f(steps: Tensor, w: Tensor) -> list[Tensor]:
        corrections = 1 - 0.9**steps
        return [w / corrections[0], w.t() / corrections[1]]

    assert stored(f, steps, WEIGHTS) == ["rsub"]


@pytest.mark.parametrize(
    "function",
    [
        lambda step, w: [w / (1 - 0.9 * step)],  # cheap
        lambda step, w: [w[0, :4] / (1 - 0.9**step)],  # few
        lambda step, w: [(w / (0.9**w)).sum() * step],  # of the same size
        lambda step, w: [w / step],  # an input
        lambda step, w: [w - w.exp().sum()],  # a sum has memory of its own
    ],
)
def test_what_is_left_alone(function: object) -> None:
    assert stored(function, STEP, WEIGHTS) == []


def test_a_row_of_exponentials() -> None:
    """An operator that is vectorised is worth storing for more elements."""
    row = torch.linspace(0.0, 1.0, 32)
    assert stored(lambda row, w: [w * row.exp()], row, WEIGHTS) == ["exp"]
    assert stored(lambda row, w: [w[:4] * row.exp()], row, WEIGHTS) == []


def test_on_another_device() -> None:
    """A kernel more costs a GPU more than the arithmetic."""
    step, w = STEP.to("meta"), WEIGHTS.to("meta")
    module = traced(lambda step, w: [w / (1 - 0.9**step)], step, w)
    assert not apply("compute_once", module)
