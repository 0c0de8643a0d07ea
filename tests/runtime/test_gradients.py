"""Gradients that were computed become the parameters' own, or are copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from sgc.emit.rewrites.optimize import Report
from sgc.runtime.autograd import Loss
from sgc.runtime.specializing.specialization import Compiled

MEMORY = torch.tensor([1.0, 2.0, 3.0])


def gradients_of(make: Callable[[], list[Tensor]]) -> tuple[Tensor, Tensor]:
    """The ``.grad`` of two parameters, where a compiled call has computed what ``make`` gives, and nobody keeps it."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    module = fx.GraphModule({}, fx.Graph())
    compiled = Compiled(lambda *tensors: [torch.zeros(()), *make()], (0, 1), module, Report())
    Loss.apply(compiled, [*parameters, MEMORY], None, *parameters).backward()
    first, second = (parameter.grad for parameter in parameters)
    assert first is not None and second is not None
    return first, second


def test_they_are_not_copied() -> None:
    places: list[int] = []

    def make() -> list[Tensor]:
        made = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
        places[:] = [gradient.data_ptr() for gradient in made]
        return made

    assert [gradient.data_ptr() for gradient in gradients_of(make)] == places


@pytest.mark.parametrize(
    "make",
    [
        lambda: [MEMORY[:2], torch.ones(2)],  # an input
        lambda: list(torch.arange(3.0).as_strided((2, 2), (1, 1))),  # overlap
        lambda: [torch.ones(1).expand(2), torch.ones(2)],  # one number
    ],
)
def test_they_are_copied_where_memory_is_shared(make: Callable[[], list[Tensor]]) -> None:
    expected = [gradient.clone() for gradient in make()]
    first, second = gradients_of(make)
    step = torch.tensor([5.0, 6.0])
    first.add_(step)
    assert torch.equal(second, expected[1])
    second.zero_()
    assert torch.equal(first, expected[0] + step)
    assert torch.equal(MEMORY, torch.tensor([1.0, 2.0, 3.0]))
