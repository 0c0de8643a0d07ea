"""``torch.compile`` around loss modules and training steps: they run as they are, and gradients arrive."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported

import sgc

X = torch.tensor(2.0)


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))))


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="eager", **options)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(loss_of: Callable[[Tensor], Tensor], parameter: Tensor) -> tuple[float, float]:
    pyro.set_rng_seed(3)
    parameter.grad = None
    loss = loss_of(X)
    loss.backward()
    assert parameter.grad is not None
    return loss.item(), parameter.grad.item()


@pytest.mark.parametrize("initialized", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: sgc.compile(model, guide, backend="eager"),
        lambda: sgc.infer.TraceGraph_ELBO(backend="eager")(model, guide),
        lambda: copy.deepcopy(sgc.compile(model, guide, backend="eager").initialize(X)),
    ],
    ids=["loss module", "ELBO", "copy"],
)
def test_a_module(make: Callable[[], sgc.LossModule], initialized: bool) -> None:
    module = make()
    if initialized:
        module.initialize(X)
    around = compiled(module)
    first = around(X)
    parameter = module.param_store.q
    assert first.requires_grad
    assert results(around, parameter) == results(module, parameter)
    with torch.no_grad():
        assert not around(X).requires_grad


def test_a_function_and_a_module_that_call_it() -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(X)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = module, nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * self.scale) * 2.0 + torch.sin(x)

    outer = Outer()
    for function in (lambda x: module(x * 2.0) + x.cos(), outer):
        assert results(compiled(function), module.param_store.q) == results(function, module.param_store.q)
    assert outer.scale.grad is not None


def test_more_modules_than_torch_compiles_for() -> None:
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        compiled(sgc.compile(model, guide, backend="eager"))(X).backward()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_a_function_that_takes_a_training_step(backend: Any) -> None:
    def losses(around: Callable[[Any], Any]) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        elbo = sgc.infer.TraceGraph_ELBO(backend=backend, rng="torch")
        svi = sgc.SVI(model, guide, torch.optim.Adam, elbo)
        step = around(lambda x: svi.step(x) + 1.0)
        run = around(lambda x: svi.run(3, x).losses.sum() + svi.evaluate_loss(x))
        return [*(step(X) for _ in range(4)), float(run(X))]

    assert losses(compiled) == pytest.approx(losses(lambda function: function))


def test_fullgraph_says_what_is_in_the_way() -> None:
    module = sgc.compile(model, guide, backend="eager").initialize(X)
    for function in (module, lambda x: module(x) + 1.0):
        with pytest.raises(Unsupported, match="sgc has compiled it already; leave out fullgraph=True"):
            compiled(function, fullgraph=True)(X)
        torch._dynamo.reset()
