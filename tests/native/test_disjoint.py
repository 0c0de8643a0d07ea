"""Whether inputs share memory that is written: the same answers in Python and in C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgc.graph.aliasing import extent
from sgc.guards.base import Call
from sgc.native import conditions

MEMORY = torch.arange(20.0)
ASK = [pytest.param(True, marks=pytest.mark.inductor), False]


def asked(
    native: bool, tensors: tuple[Tensor, ...], written: list[int], kept: list[Tensor], any_size: bool = False
) -> Callable[..., list[Any] | None]:
    """What asks whether tensors like these lie apart."""
    sizes = {i: None if any_size else extent(tensor) for i, tensor in enumerate(tensors)}
    stretches = [(tensor.data_ptr(), tensor.data_ptr() + extent(tensor)) for tensor in kept]
    found = conditions.alike([conditions.leaf(i) for i in sizes], lambda *_: True, [-1 - i for i in sizes])
    apart = conditions.disjoint(
        {i: sizes[i] for i in written}, {i: size for i, size in sizes.items() if i not in written}, extent, stretches
    )
    ask = conditions.watch([((found, apart), None)], native=native)
    return lambda *given: ask(Call(given, {}))


@pytest.mark.parametrize("native", ASK)
@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (slice(0, 4), slice(4, 8), True),
        (slice(4, 8), slice(0, 4), True),
        (slice(0, 4), slice(3, 7), False),
        (slice(3, 7), slice(0, 4), False),
        (slice(0, 4), slice(0, 4), False),
    ],
)
def test_stretches_of_two_inputs(one: slice, other: slice, apart: bool, native: bool) -> None:
    given = MEMORY[one], MEMORY[other]
    for written in ([0], [1], [0, 1]):
        ask = asked(native, (torch.ones(4), torch.ones(4)), written, [])
        assert (ask(*given) is not None) is apart
    assert asked(native, (torch.ones(4), torch.ones(4)), [], [])(*given) is not None


@pytest.mark.parametrize("native", ASK)
def test_stretches_that_are_kept(native: bool) -> None:
    kept = [MEMORY[12:14], MEMORY[2:4], MEMORY[4:6]]
    ask = asked(native, (torch.ones(2),), [], kept)
    free = [i for i in range(19) if ask(MEMORY[i : i + 2]) is not None]
    assert free == [0, *range(6, 11), *range(14, 19)]
    wide = asked(native, (torch.ones(12),), [], kept)
    assert [i for i in range(9) if wide(MEMORY[i : i + 12]) is not None] == []
    assert wide(torch.ones(12)) is not None


@pytest.mark.parametrize("native", ASK)
def test_tensors_without_elements_lie_nowhere(native: bool) -> None:
    ask = asked(native, (torch.ones(4), torch.ones(0)), [0], [MEMORY[:2]])
    assert ask(MEMORY[4:8], MEMORY[5:5]) is not None
    assert ask(MEMORY[1:5], MEMORY[5:5]) is None
    empty = asked(native, (torch.ones(0), torch.ones(4)), [0], [])
    assert empty(MEMORY[5:5], MEMORY[4:8]) is not None


@pytest.mark.parametrize("native", ASK)
def test_a_default_device_is_not_asked(native: bool) -> None:
    ask = asked(native, (torch.ones(4), torch.ones(4)), [0], [])
    with torch.device("cpu"):
        assert ask(MEMORY[:4], MEMORY[4:8]) is not None
        assert ask(MEMORY[:4], MEMORY[3:7]) is None


@pytest.mark.parametrize("native", ASK)
def test_sizes_that_differ_from_call_to_call(native: bool) -> None:
    ask = asked(native, (torch.ones(4), torch.ones(4)), [0], [MEMORY[16:]], any_size=True)
    assert ask(MEMORY[:4], MEMORY[4:12]) is not None
    assert ask(MEMORY[:5], MEMORY[4:12]) is None
    assert ask(MEMORY[:4], MEMORY[4:17]) is None
    assert ask(MEMORY[:4], MEMORY[2:2]) is not None
