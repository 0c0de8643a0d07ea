"""With ``rng="torch"`` what Inductor compiles draws what torch draws, also what nothing reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch._inductor.ir import InplaceBernoulliFallback
from torch.nn import functional as F

import sgc
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


def model_of_subsamples(x: Tensor) -> None:
    with pyro.plate("columns", 6, subsample_size=3, dim=-1) as i:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        with pyro.plate("rows", 4, subsample_size=2, dim=-2) as j:
            c = pyro.sample("c", dist.Bernoulli(a.sigmoid()))
            pyro.sample("x", dist.Normal(a * b + c, 1.0), obs=x[j][:, i])


def guide_of_subsamples(x: Tensor) -> None:
    first, second = pyro.param("first", torch.zeros(6)), pyro.param("second", torch.zeros(6))
    third = pyro.param("third", torch.zeros(4, 6))
    with pyro.plate("columns", 6, subsample_size=3, dim=-1) as i:
        a = pyro.sample("a", dist.Normal(first[i], 0.8))
        b = pyro.sample("b", dist.Bernoulli(logits=second[i] + a))
        with pyro.plate("rows", 4, subsample_size=2, dim=-2) as j:
            pyro.sample("c", dist.Bernoulli(logits=third[j][:, i] + b))


@pytest.mark.inductor
@pytest.mark.cpu
def test_a_subsample_is_drawn_where_it_was() -> None:
    """Though it is used as an index after other draws."""
    x = torch.arange(24.0).view(4, 6) / 10
    losses = []
    for elbo in (sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch"), pyro.infer.TraceGraph_ELBO()):
        elbo.loss_and_grads(model_of_subsamples, guide_of_subsamples, x)
        pyro.set_rng_seed(0)
        losses.append(elbo.loss_and_grads(model_of_subsamples, guide_of_subsamples, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_inductor_is_as_it_was() -> None:
    before = dict(vars(InplaceBernoulliFallback))
    with pytest.raises(ZeroDivisionError), unread_draws():
        assert dict(vars(InplaceBernoulliFallback)) != before
        raise ZeroDivisionError
    assert dict(vars(InplaceBernoulliFallback)) == before
