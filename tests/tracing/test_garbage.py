"""Python looks for garbage less often while a program is compiled, and as often as before afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

import sgc
from sgc.tracing.python.garbage import rarely_collected
from tests.reference.zoo import ZOO


@pytest.fixture(autouse=True)
def threshold() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize("young", [700, 10**6])
def test_less_often(young: int) -> None:
    gc.set_threshold(young, 11, 12)
    with rarely_collected():
        assert gc.get_threshold() == (max(young, 100_000), 11, 12)
        with rarely_collected():
            pass
        assert gc.get_threshold()[0] >= 100_000
    assert gc.get_threshold() == (young, 11, 12)


def test_never_stays_never() -> None:
    gc.set_threshold(0, 11, 12)
    with pytest.raises(ZeroDivisionError), rarely_collected():
        assert gc.get_threshold()[0] == 0
        torch.ones(1 // 0)
    assert gc.get_threshold() == (0, 11, 12)


def test_a_compilation_puts_it_back() -> None:
    gc.set_threshold(701, 11, 12)
    case = ZOO[0].make()
    sgc.compile(case.model, case.guide, backend="eager", **case.options)(*case.args, **case.kwargs).backward()
    assert gc.get_threshold() == (701, 11, 12)
