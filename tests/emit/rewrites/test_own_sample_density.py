"""What a multivariate normal is scored by at its own sample: the numbers that it was drawn with, and no solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import sgc
from sgc.emit.differentiate import differentiate
from sgc.emit.fx.rewriting import copy_of
from sgc.emit.rewrites.before_gradient.own_sample_density import score_own_samples
from sgc.runtime.specializing.compiler import differentiate_loss

generator = torch.Generator().manual_seed(0)
LOC, E = torch.randn(4, generator=generator), torch.randn(4, generator=generator)
RAW = torch.randn(4, 4, generator=generator) + 3 * torch.eye(4)
SOLVE = torch.ops.aten.linalg_solve_triangular.default


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return matrix.matmul(vector.unsqueeze(-1)).squeeze(-1)


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    size = matrix.shape[-1]
    batch = vector.reshape(-1, 1, size).permute(1, 2, 0)
    return torch.linalg.solve_triangular(matrix.reshape(-1, size, size), batch, upper=False)


def own(matrix: Tensor, loc: Tensor, e: Tensor) -> Tensor:
    return solve(matrix, loc + times(matrix, e) - loc)


def reversed_sum(raw: Tensor, loc: Tensor, e: Tensor) -> Tensor:
    matrix = raw.tril()
    return solve(matrix, times(matrix, e) + loc - loc)


def written_later(raw: Tensor, loc: Tensor, e: Tensor) -> Tensor:
    matrix, numbers = raw.tril(), e.clone()
    sample = loc + times(matrix, numbers)
    numbers.zero_()
    return solve(matrix, sample - loc)


def another_loc_by_then(raw: Tensor, loc: Tensor, e: Tensor) -> Tensor:
    matrix, place = raw.tril(), loc.clone()
    sample = place + times(matrix, e)
    place.zero_()
    return solve(matrix, sample - place)


Function = Callable[[Tensor, Tensor, Tensor], Tensor]

TAKEN: dict[str, Function] = {
    "tril": lambda raw, loc, e: own(raw.tril(), loc, e),
    "scaled": lambda raw, loc, e: own(raw.diagonal().exp().unsqueeze(1) * (raw.tril(-1) + torch.eye(4)), loc, e),
    "its own diagonal": lambda raw, loc, e: own(raw.tril(-1) + raw.diagonal().exp().diag_embed(), loc, e),
    "expanded": lambda raw, loc, e: own(raw.tril().expand(1, 4, 4).reshape(4, 4), loc.expand(4), e),
    "the other way round": reversed_sum,
}

LEFT: dict[str, Function] = {
    "not known to be triangular": lambda raw, loc, e: own(raw, loc, e),
    "a diagonal too many": lambda raw, loc, e: own(raw.tril(1), loc, e),
    "another matrix": lambda raw, loc, e: solve(raw.tril(), loc + times(raw.tril() * 2, e) - loc),
    "another loc": lambda raw, loc, e: solve(raw.tril(), loc + times(raw.tril(), e) - 2 * loc),
    "a sum with a factor": lambda raw, loc, e: solve(raw.tril(), torch.sub(loc + times(raw.tril(), e), loc, alpha=0.5)),
    "an upper triangle": lambda raw, loc, e: torch.linalg.solve_triangular(
        raw.tril(), (loc + times(raw.tril(), e) - loc).unsqueeze(-1), upper=True
    ),
    "a batch": lambda raw, loc, e: own(raw.tril().expand(2, 4, 4).contiguous(), loc.expand(2, 4), e.expand(2, 4)),
    "numbers that are written later": written_later,
    "a loc that is another by then": another_loc_by_then,
}


def traced(function: Function) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake", pre_dispatch=True)(RAW, LOC, E)


def solutions(module: fx.GraphModule) -> int:
    return len(module.graph.find_nodes(op="call_function", target=SOLVE))


@pytest.mark.parametrize("name", TAKEN)
def test_own_samples(name: str) -> None:
    before = traced(TAKEN[name])
    module = copy_of(before)
    assert score_own_samples(module) and not solutions(module)
    assert not score_own_samples(module)
    found = module(RAW, LOC, E)
    assert torch.equal(found.flatten(), E)
    torch.testing.assert_close(found, before(RAW, LOC, E), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_sample_of_its_own(name: str) -> None:
    module = traced(LEFT[name])
    code = module.code
    assert solutions(module) == 1
    assert not score_own_samples(module)
    assert module.code == code


def test_an_autoguide() -> None:
    """Loss and gradients are Pyro's; the module that computes them solves nothing."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.sum(), scale), obs=x)

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x = torch.tensor([0.1, -0.5, 2.0])
    count: dict[Any, int] = {}
    for backend in ("eager", "torchscript"):
        module = sgc.compile(model, AutoMultivariateNormal(model), backend=backend).initialize(x)
        count[backend] = solutions(differentiate_loss(*module.specialization_for(x)).module)
        assert module.verify(x).ok
    assert count == {"eager": 2, "torchscript": 0}


def test_the_gradient_is_that_of_the_numbers() -> None:
    """They do not depend on the parameters, though what is solved seems to."""

    def losses(raw: Tensor, loc: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        loss = TAKEN["tril"](raw, loc, e).square().sum() + raw.diagonal().log().sum()
        return loss, loss

    before = make_fx(losses, tracing_mode="fake", pre_dispatch=True)(RAW, LOC, E)
    module = copy_of(before)
    assert score_own_samples(module)
    found, solved = (differentiate(m, [RAW, LOC, E], [0]).module(RAW, LOC, E)[1] for m in (module, before))
    assert torch.equal(found, torch.diag(1 / RAW.diagonal()))
    torch.testing.assert_close(solved, found, rtol=1e-4, atol=1e-4)
