"""Gradients that were computed become the parameters' own, or are copied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from sgc.emit.optimize.pipeline import Report
from sgc.run.gradients import Loss
from sgc.run.specialization import Compiled

MEMORY = torch.tensor([1.0, 2.0, 3.0])


def gradients_of(*given: Tensor) -> list[Tensor]:
    """The ``.grad`` of two parameters, where a compiled call has computed ``given``."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in given]
    module = fx.GraphModule({}, fx.Graph())
    compiled = Compiled(lambda *tensors: [torch.zeros(()), *given], (0, 1), module, Report())
    Loss.apply(compiled, [*parameters, MEMORY], None, *parameters).backward()
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def test_they_are_not_copied() -> None:
    given = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    for found, gradient in zip(gradients_of(*given), given, strict=True):
        assert found.data_ptr() == gradient.data_ptr()


@pytest.mark.parametrize(
    "given",
    [
        (MEMORY[:2], torch.ones(2)),  # an input
        tuple(torch.arange(3.0).as_strided((2, 2), (1, 1))),  # overlap
        (torch.ones(1).expand(2), torch.ones(2)),  # one number
    ],
)
def test_they_are_copied_where_memory_is_shared(given: tuple[Tensor, Tensor]) -> None:
    before = [gradient.clone() for gradient in given]
    first, second = gradients_of(*given)
    first.add_(torch.tensor([5.0, 6.0]))
    assert torch.equal(second, before[1])
    second.zero_()
    assert torch.equal(first, before[0] + torch.tensor([5.0, 6.0]))
    assert all(torch.equal(gradient, old) for gradient, old in zip(given, before, strict=True))
