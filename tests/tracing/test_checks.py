"""What a program calls for the error that it raises is raised at every call, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import sgc
from tests.programs import asserting_model

Check = Callable[[Tensor], Any]


@torch.library.custom_op("sgc_tests::not_negative", mutates_args=())
def not_negative(x: Tensor) -> None:
    if (x < 0).any():
        raise ValueError("negative data")


@not_negative.register_fake
def _(x: Tensor) -> None:
    pass


def custom(x: Tensor) -> None:
    not_negative(pyro.param("w", torch.tensor(2.0)) * x)


def asserted(x: Tensor) -> None:
    torch._assert_async((x >= 0).all())


def asserted_with_text(x: Tensor) -> None:
    torch._assert((x >= 0).all(), "negative data")


def factored(x: Tensor) -> None:
    torch.linalg.cholesky(x.diag())


def inverted(x: Tensor) -> None:
    torch.linalg.inv((x + 1).diag())


def classes(x: Tensor) -> Tensor:
    return one_hot(x.long(), 4) * pyro.param("w", torch.tensor(2.0))


def tossed(x: Tensor) -> Tensor:
    return torch.bernoulli(x / 5)


def program(check: Check) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        made = check(x)
        weight = 1.0 if made is None else made.sum()
        pyro.sample("y", dist.Normal(z * weight * x.sum(), 1.0), obs=torch.tensor(0.7))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    return model, guide


CASES: list[tuple[Check, type[Exception], str]] = [
    (custom, ValueError, "negative data"),
    (asserted, RuntimeError, "nonzero value"),
    (asserted_with_text, AssertionError, "negative data"),
    (factored, RuntimeError, "positive-definite"),
    (inverted, RuntimeError, "singular"),
    (classes, RuntimeError, "non-negative"),
    (tossed, RuntimeError, "p_in"),
]


@pytest.mark.parametrize("validate", [None, False])
@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize(("check", "kind", "text"), CASES)
def test_a_call_that_checks_raises_at_every_call(
    check: Check, kind: type[Exception], text: str, backend: Any, validate: bool | None
) -> None:
    raises(check, kind, text, backend=backend, validate=validate)


@pytest.mark.inductor
@pytest.mark.parametrize(("check", "kind", "text"), [case for case in CASES if case[0] is not inverted])
def test_under_inductor_too(check: Check, kind: type[Exception], text: str) -> None:
    raises(check, kind, text, backend="inductor", rng="torch")


def raises(check: Check, kind: type[Exception], text: str, **options: Any) -> None:
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 2.0])
    model, guide = program(check)
    module = sgc.compile(model, guide, **options)
    pyro.set_rng_seed(0)
    first = module(good).item()
    assert len(module.specializations) == 1
    with pytest.raises(kind, match=text):
        module(bad)
    pyro.set_rng_seed(0)
    assert module(good).item() == first and len(module.specializations) == 1
    pyro.set_rng_seed(0)
    torch.testing.assert_close(first, pyro.infer.TraceGraph_ELBO().loss(model, guide, good))


def test_an_assertion_on_a_sample_holds_at_run_time() -> None:
    def guide(limit: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))

    for backend in ("eager", "torchscript"):
        module = sgc.compile(asserting_model, guide, backend=backend)
        assert torch.isfinite(module(torch.tensor(1.0)))
        with pytest.raises(AssertionError):
            for _ in range(20):  # z is 1 within 20 draws but for a chance of 1e-7
                module(torch.tensor(0.5))


def test_a_step_that_is_not_valid_changes_nothing() -> None:
    model, guide = program(custom)
    svi = sgc.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.1), loss=sgc.infer.TraceGraph_ELBO(backend="eager"))
    svi.step(torch.tensor([1.0, 2.0]))
    before = pyro.param("loc").item()
    with pytest.raises(ValueError, match="negative data"):
        svi.step(torch.tensor([-1.0, 2.0]))
    assert pyro.param("loc").item() == before
