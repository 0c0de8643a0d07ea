"""With ``rng="torch"`` what Inductor compiles draws what torch draws, also what nothing reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.ir import InplaceBernoulliFallback
from torch.nn import functional as F

from sgc.emit.backends import build
from sgc.emit.ordering import unread_draws
from tests.emit.optimize.graphs import results, traced

DRAWS: list[Callable[[Tensor], Any]] = [
    lambda x: torch.rand(3),
    lambda x: F.dropout(x),
    lambda x: torch.native_dropout(x, 0.5, True),
    lambda x: torch.empty(3).bernoulli_(x),
    lambda x: torch.empty(3, dtype=torch.int64).bernoulli_(0.3),
    lambda x: torch.bernoulli(x),
    lambda x: torch.normal(x, x),
    lambda x: torch.multinomial(x, 1),
    lambda x: torch._standard_gamma(x),
    lambda x: torch._sample_dirichlet(x),
    lambda x: torch.empty(3).exponential_(),
    lambda x: torch.randperm(5),
]

LAID_OUT: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.bernoulli(x),
    lambda x: torch.bernoulli(x, p=0.3),
    lambda x: torch.empty_like(x).bernoulli_(x),
    lambda x: F.dropout(x, 0.3),
    lambda x: torch.normal(x, x),
    lambda x: torch.empty_like(x).uniform_(1.0, 2.0),
]


@pytest.mark.inductor
@pytest.mark.cpu
def test_draws_that_nothing_reads() -> None:
    def program(x: Tensor) -> list[Tensor]:
        found = []
        for draw in DRAWS:
            draw(x)
            found.append(torch.rand(2))
        return found

    x = torch.full((3,), 0.5)
    module = traced(program, x)
    compiled = build(module, [x], "inductor", "torch").run
    (*expected, _), state = results(module, x), torch.get_rng_state()
    torch.manual_seed(0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(compiled(x), expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.inductor
@pytest.mark.cpu
def test_draws_of_float64_and_of_transposed_tensors() -> None:
    def program(x: Tensor) -> list[Tensor]:
        return [*(draw(y) for y in (x, x.t(), x.t().double(), x.double()) for draw in LAID_OUT), torch.rand(2)]

    x = torch.rand(5, 6)
    module = traced(program, x)
    compiled = build(module, [x], "inductor", "torch").run
    (*expected, _), state = results(module, x), torch.get_rng_state()
    torch.manual_seed(0)
    torch.testing.assert_close(list(compiled(x)), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.inductor
@pytest.mark.cpu
def test_a_subsample_is_drawn_where_it_was() -> None:
    def program(x: Tensor) -> list[Tensor]:
        index = torch.randperm(6)[:3]
        return [torch.randn(3), x[index], torch.index_add(x, 0, torch.randperm(6)[:3], x[:3]), torch.rand(2)]

    x = torch.rand(6, 2)
    module = traced(program, x)
    compiled = build(module, [x], "inductor", "torch").run
    (*expected, _) = results(module, x)
    torch.manual_seed(0)
    torch.testing.assert_close(list(compiled(x)), expected)


def test_inductor_is_as_it_was() -> None:
    before = dict(vars(InplaceBernoulliFallback))
    with pytest.raises(ZeroDivisionError), unread_draws():
        assert dict(vars(InplaceBernoulliFallback)) != before
        raise ZeroDivisionError
    assert dict(vars(InplaceBernoulliFallback)) == before
