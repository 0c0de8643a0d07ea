"""Model and guide that are wrapped anew at each call are one program, with the numbers and tensors of the call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import sgc

DATA = torch.tensor([0.3, -1.2, 2.0])


def model(x: Tensor, shift: Any = 0.0) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Bernoulli(0.5))
    with pyro.plate("rows", 3):
        pyro.sample("x", dist.Normal(z + b + shift, 1.0), obs=x)


def guide(x: Tensor, shift: Any = 0.0) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))
    pyro.sample("b", dist.Bernoulli(pyro.param("q", torch.tensor(0.4))))


class Pair:
    def model(self, x: Tensor) -> None:
        model(x, 0.5)


PAIR = Pair()
Wrap = Callable[[Callable[..., Any], float], Callable[..., Any]]

WRAPPERS: dict[str, Wrap] = {
    "scale": lambda f, a: poutine.scale(f, a),
    "nested": lambda f, a: poutine.block(poutine.scale(poutine.mask(f, mask=True), a), hide=["nothing"]),
    "condition": lambda f, a: poutine.condition(f, data={"z": torch.tensor(a)}) if f is model else f,
    "keyword of a partial": lambda f, a: partial(f, shift=a),
    "partial of a wrapper": lambda f, a: partial(poutine.scale(f, 2.0), shift=a),
    "argument of a partial": lambda f, a: partial(lambda b, x: f(x, b), a),
    "variable of a lambda": lambda f, a: lambda x: f(x, a),
    "tensor of a lambda": lambda f, a: (lambda t: lambda x: f(x, t))(torch.full((3,), a)),
    "handler within a lambda": lambda f, a: (lambda g: lambda x: g(x))(poutine.scale(f, a)),
}


def losses(elbo: Any, wrap: Wrap, numbers: list[float]) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    found = [elbo.loss_and_grads(wrap(model, a), wrap(guide, a), DATA) for a in numbers]
    gradients = [p.grad.item() for _, p in sorted(pyro.get_param_store().named_parameters()) if p.grad is not None]
    return found + gradients


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize(
    ("numbers", "captures"), [([0.5] * 4, 1), ([0.2, 0.4, 0.6, 0.8, 1.0, 0.4], 3)], ids=["the same", "others"]
)
def test_wrapped_anew(wrap: Wrap, numbers: list[float], captures: int) -> None:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    expected = losses(pyro.infer.TraceGraph_ELBO(), wrap, numbers)
    assert losses(elbo, wrap, numbers) == pytest.approx(expected, rel=1e-5)
    made = sum(len(one.specializations) for one in elbo._compiled)
    # A new tensor is another part, also where its numbers are the same.
    assert made <= (captures if wrap not in (WRAPPERS["condition"], WRAPPERS["tensor of a lambda"]) else 3)


def test_kept_wrappers_stay_as_they_are() -> None:
    elbo, theirs = sgc.infer.TraceGraph_ELBO(backend="eager"), pyro.infer.TraceGraph_ELBO()
    half, whole, third = (poutine.scale(model, a) for a in (0.5, 1.0, 0.3))
    guide(DATA)
    for wrapped in (half, whole, third, half, third, whole, half):
        pyro.set_rng_seed(0)
        expected = theirs.loss(wrapped, guide, DATA)
        pyro.set_rng_seed(0)
        assert elbo.loss(wrapped, guide, DATA) == pytest.approx(expected, rel=1e-6)
    assert half.func.args[0].scale == 0.5 and whole.func.args[0].scale == 1.0  # type: ignore[attr-defined]


def test_bound_methods_and_other_programs() -> None:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    for _ in range(3):
        elbo.loss(PAIR.model, guide, DATA)
    assert len(elbo._compiled) == 1
    elbo.loss(Pair().model, guide, DATA)
    elbo.loss(poutine.scale(PAIR.model, 0.5), guide, DATA)
    elbo.loss(poutine.scale(model, 0.5), guide, DATA)
    elbo.loss(poutine.block(model, hide=["nothing"]), poutine.block(guide, hide=["nothing"]), DATA)
    assert len(elbo._compiled) == 5


def test_a_variable_that_the_wrapper_writes_is_its_own() -> None:
    def counting() -> Callable[[Tensor], None]:
        count = 0

        def wrapped(x: Tensor) -> None:
            nonlocal count
            count += 1
            model(x)

        return wrapped

    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    with pytest.warns(sgc.errors.SideEffectWarning):
        elbo.loss(counting(), guide, DATA)
    assert all(one._wrappers is None for one in elbo._compiled)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_svi_whose_model_is_wrapped_anew(backend: Any) -> None:
    def run(make: Callable[..., Any], elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        found = []
        for i in range(8):
            svi.model, svi.guide = poutine.scale(model, 0.1 + 0.1 * i), poutine.scale(guide, 0.1 + 0.1 * i)
            found.append(svi.step(DATA))
            found.append(svi.step(DATA))
        return found

    expected = run(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO())
    assert run(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend=backend)) == pytest.approx(expected, rel=1e-4)


def _recursive() -> Callable[..., None]:
    def chain(x: Tensor, length: int = 3, before: Any = 0.0) -> None:
        if length:
            chain(x, length - 1, pyro.sample(f"z{length}", dist.Normal(before, 1.0)))

    return chain


def _of_each_other() -> Callable[..., None]:
    def even(x: Tensor, length: int = 4, before: Any = 0.0) -> None:
        if length:
            odd(x, length - 1, pyro.sample(f"z{length}", dist.Normal(before, 1.0)))

    def odd(x: Tensor, length: int, before: Any) -> None:
        even(x, length - 1, pyro.sample(f"z{length}", dist.Normal(before, 2.0)))

    return even


@pytest.mark.parametrize("make", [_recursive, _of_each_other])
@pytest.mark.parametrize("wrap", [lambda program: program, lambda program: partial(program)])
def test_functions_that_call_themselves_are_wrapped_too(make: Callable[..., Any], wrap: Callable[..., Any]) -> None:
    program = wrap(make())
    svi = sgc.SVI(program, program, lambda parameters: torch.optim.SGD(parameters, lr=0.1), _elbo())
    assert svi.evaluate_loss(DATA) == pytest.approx(0.0, abs=1e-6)
    assert svi.evaluate_loss(DATA) == pytest.approx(0.0, abs=1e-6)
    assert len(svi.loss_module.specializations) == 1


def _elbo() -> Any:
    return sgc.infer.TraceGraph_ELBO(backend="eager")
