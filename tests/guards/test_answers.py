"""What is guarded of a read is the answer that Python was given; a number that is only computed with is no guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from tests.guards.test_moving_numbers import compare, guide, observe

DATA = torch.tensor([0.5, 2.0, -1.0])


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 1.0, 1.5, 2.0, 2.5):
        yield scale * torch.rand(3, generator=generator) + 0.1


ANSWERS: dict[str, Callable[[Tensor], Any]] = {
    "is_nonzero": lambda x: torch.is_nonzero(x.sum()),
    "equal": lambda x: torch.equal(x, 2 * x),
    "equal of other shapes": lambda x: torch.equal(x, torch.ones(2)),
    "allclose": lambda x: torch.allclose(x, x + 1e-9, rtol=1e-3),
    "contains": lambda x: 7.0 in x,
    "a branch": lambda x: bool(x.max() > 100),
    "a number as a truth": lambda x: bool(x.norm()),
    "any and all": lambda x: (x > 0).all() and not (x < 0).any(),
    "int that cuts off": lambda x: range(int(x.mean() / 1000) + 2)[-1],
    "sign": lambda x: 1.0 if x.sum() > 0 else -1.0,
}


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_answers_that_stay_the_same(ask: Callable[[Tensor], Any]) -> None:
    def model(x: Tensor) -> None:
        observe(0.5 * x + (1.0 if ask(x) else 0.0))

    module = sgc.compile(model, guide, backend="eager")
    for x in batches():
        compare(module, model, x)
    assert len(module.specializations) == 1, module.misses()


@pytest.mark.parametrize("name", ["equal", "allclose", "__contains__", "is_nonzero", "__bool__", "__int__"])
def test_answers_that_change(name: str) -> None:
    asks: dict[str, Callable[[Tensor], Any]] = {
        "equal": lambda x: torch.equal(x, DATA),
        "allclose": lambda x: torch.allclose(x, DATA),
        "__contains__": lambda x: 2.0 in x,
        "is_nonzero": lambda x: torch.is_nonzero(x[0]),
        "__bool__": lambda x: bool(x[0]),
        "__int__": lambda x: [0.0, 1.0, 2.0][int(x[1])],
    }

    def model(x: Tensor) -> None:
        observe(3.0 if asks[name](x) else 0.5)

    module = sgc.compile(model, guide, backend="eager")
    for x in (DATA, torch.tensor([0.0, 1.0, 1.0]), DATA, torch.tensor([0.0, 0.2, 0.3]), torch.tensor([-0.0, 1.5, 1.5])):
        compare(module, model, x)
    assert 2 <= len(module.specializations) <= 4, module.misses()


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item() / 3,
    "float": lambda x: float(x.max()) ** 2,
    "int": lambda x: int(10 * x.sum()) / 7,
    "of an integer tensor": lambda x: (x > 1).sum().item() + 1,
    "extremes": lambda x: min(x[0].item(), 0.9) + max(x[1].item(), x[2].item()),
    "of numbers": lambda x: torch.tensor([x[0].item(), 2 * x[1].item(), 1.0]),
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_a_batch(number: Callable[[Tensor], Any]) -> None:
    def model(x: Tensor) -> None:
        observe(number(x) - 0.5, 1.0)

    module = sgc.compile(model, guide, backend="eager")
    for x in batches():
        compare(module, model, x)
    assert len(module.specializations) <= 2, module.misses()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_steps_with_a_count_of_the_batch(backend: Any) -> None:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        total = int(x.sum(-1).max())
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=total / 100):
            pyro.sample("x", dist.Multinomial(total, p, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        concentration = pyro.param("a", torch.ones(4), constraint=dist.constraints.positive)
        pyro.sample("p", dist.Dirichlet(concentration))

    def losses(make: Callable[..., Any], elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        found = [svi.step(torch.arange(24.0).reshape(6, 4).remainder(i + 3)) for i in range(8)]
        if isinstance(svi, sgc.SVI):
            assert len(svi.loss_module.specializations) == 2, svi.loss_module.misses()
        return found

    expected = losses(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO())
    assert losses(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend=backend)) == pytest.approx(expected, rel=1e-4)


def test_a_number_of_a_sample_is_refused_as_before() -> None:
    def model(x: Tensor) -> None:
        observe(float(x.sum()))
        if x.sum() > 2:
            y = pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))
            assert y is not None
            float(pyro.sample("z2", dist.Normal(0.0, 1.0)))

    def guide2(x: Tensor) -> None:
        guide(x)
        if x.sum() > 2:
            pyro.sample("z2", dist.Normal(0.0, 1.0))

    module = sgc.compile(model, guide2, backend="eager")
    module(0.1 * torch.ones(3))
    module(0.2 * torch.ones(3))
    with pytest.raises(sgc.errors.DataDependenceError, match="z2"):
        module(torch.ones(3))
