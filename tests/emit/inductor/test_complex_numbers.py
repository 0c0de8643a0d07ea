"""A number beside a complex tensor without dimensions leaves the tensor's type as it is under Inductor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from sgc.emit.backends.registry import build
from sgc.emit.inductor.workarounds.complex_numbers import type_numbers
from tests.emit.rewrites.graphs import traced

A, B = torch.tensor([0.3, -1.2, 0.8]), torch.tensor([1.1, 0.4, -0.7])


def numbers(a: Tensor, b: Tensor) -> list[Tensor]:
    z = torch.complex(a, b)
    one = torch.complex(a[0], b[1])
    found = [z + one * 0.1, z * (one / 3 - 1), torch.complex(a[1], b[2]).abs() * 0.5 + z]
    return [torch.view_as_real(value) for value in found]


def test_no_number_stands_beside_one() -> None:
    module = traced(numbers, A, B)
    type_numbers(module)
    computed = [node for node in module.graph.nodes if node.op == "call_function" and node.all_input_nodes]
    alone = [node for node in computed if node.meta["val"].is_complex() and not node.meta["val"].dim()]
    assert len(alone) == 5
    assert [node for node in alone if not all(isinstance(argument, fx.Node) for argument in node.args)] == []
    for found, expected in zip(module(A, B), numbers(A, B), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.inductor
@pytest.mark.cpu
def test_inductor() -> None:
    (found,) = build(traced(lambda a, b: numbers(a, b)[:1], A, B), (A, B), "inductor", "torch").run(A, B)
    torch.testing.assert_close(found, numbers(A, B)[0])
