"""What depends on a sample in an eager run, by the memory that operators read and write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgc.runtime.parity.eager_provenance import Provenance, followed

Z = frozenset({"z"})


def written(z: Tensor) -> Tensor:
    x = torch.zeros(3)
    x[1:][0] = z
    return x


def result_of_out(z: Tensor) -> Tensor:
    x = torch.zeros(())
    torch.add(z, 1.0, out=x)
    return x.view(1)


def added_in_place(z: Tensor) -> Tensor:
    x = torch.zeros(2)
    x += z
    return x.clone()


class Numbers(torch.autograd.Function):
    """Its forward leaves torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(float(x.detach().numpy() + y.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient


WAYS: list[Callable[[Tensor], Tensor]] = [
    written,
    result_of_out,
    added_in_place,
    lambda z: torch.tensor([z, 2.0]),
    lambda z: torch.as_tensor([z, z], dtype=torch.float64),
    lambda z: torch.zeros(2).new_tensor([1.0, z]),
    lambda z: torch.full((2,), 1.0).masked_fill(torch.tensor([True, False]), z),
    lambda z: Numbers.apply(torch.ones((), requires_grad=True), z),
    lambda z: torch.stack(torch.unbind(z.expand(2))),
]


@pytest.mark.cpu
@pytest.mark.parametrize("way", WAYS)
def test_what_is_made_of_a_sample_depends_on_it(way: Callable[[Tensor], Tensor]) -> None:
    provenance = Provenance()
    with followed(provenance):
        z, other = torch.ones(()).clone(), torch.ones(2)
        provenance.add(z, Z)
        made = way(z)
        assert provenance.of(made) == Z and provenance.of(2 * made) == Z
        assert provenance.of(other, 2 * other) == frozenset()


def test_tensors_keep_their_class_and_their_gradient() -> None:
    provenance = Provenance()
    with followed(provenance):
        z = torch.tensor([2.0, 3.0])
        provenance.add(z, Z)
        w = torch.ones(2, requires_grad=True)
        drawn = torch.distributions.Dirichlet(w * z).rsample()
        assert type(drawn) is Tensor and drawn.requires_grad and provenance.of(drawn) == Z
        assert z.new(torch.Size([4])).shape == (4,)
        both = drawn + z
        provenance.add(both, frozenset({"y"}))
    assert provenance.of(both) == Z | {"y"} and provenance.of(w) == frozenset()
