"""Backends are found by their names, and another one takes a class and an entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor, fx

import sgc
import sgc.infer
from sgc.config import Rng
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.protocol import Backend, StepBackend
from sgc.emit.backends.registry import TIERS, UNCOMPILED, backend_of, registered
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.optimize import Optimized, optimize
from sgc.errors import BackendError
from sgc.infer import compiled

X = torch.tensor([0.3, -0.2])


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))


class Interpreter(Backend):
    """Rewrites, and goes through the nodes one after another."""

    name = "interpreter"

    def __init__(self) -> None:
        self.runs = 0

    def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
        return optimize(module, examples, rng="torch")

    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        interpreter = fx.Interpreter(optimized.module)

        @torch.no_grad()
        def run(*inputs: Tensor) -> Any:
            self.runs += 1
            return interpreter.run(*inputs)

        return run

    def draws_as_torch(self, rng: Rng) -> bool:
        return True


@pytest.mark.parametrize("name", ["interpreter", "", None, 3])
def test_an_unknown_one(name: Any) -> None:
    with pytest.raises(BackendError) as caught:
        sgc.compile(model, guide, backend=name)
    assert str(caught.value) == (f"unknown backend {name!r}\n  remedy: use one of ('inductor', 'eager', 'torchscript')")
    if name is not None:
        with pytest.raises(BackendError, match="unknown backend"):
            sgc.infer.TraceGraph_ELBO(backend=name)


def test_another_one_computes_losses_gradients_and_steps() -> None:
    """Its steps are taken in Python, for it compiles none."""
    backend = Interpreter()
    with registered(backend):
        module = sgc.compile(model, guide, backend="interpreter")
        pyro.set_rng_seed(0)
        loss = module(X)
        loss.backward()
        assert module.verify(X)
        assert "loss and gradients, interpreter" in module.profile()
        svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), sgc.infer.TraceGraph_ELBO(backend="interpreter"))
        runs = backend.runs
        losses = [svi.step(X) for _ in range(3)]
        assert backend.runs == runs + 3
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    eager = sgc.compile(model, guide, backend="eager")
    torch.testing.assert_close(eager(X), loss)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    with pytest.raises(BackendError):
        backend_of("interpreter")


def test_one_in_the_place_of_another_is_there_for_what_is_captured_within() -> None:
    before = backend_of("inductor")
    with registered(Inductor()) as nothing:
        assert nothing is None and backend_of("inductor") is not before
    assert backend_of("inductor") is before


def test_what_is_asked_of_them() -> None:
    inductor, eager, torchscript = (backend_of(name) for name in ("inductor", "eager", "torchscript"))
    assert [backend.draws_as_torch("fast") for backend in (inductor, eager, torchscript)] == [False, True, True]
    assert all(backend.draws_as_torch("torch") for backend in (inductor, eager, torchscript))
    assert [isinstance(backend, StepBackend) for backend in (inductor, eager, torchscript)] == [True, False, False]
    assert [backend.needs_compiler for backend in (inductor, eager, torchscript)] == [True, False, False]
    assert backend_of(UNCOMPILED) is eager and [backend_of(name) for name in TIERS] == [eager, inductor]


def test_the_tiers_are_those_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss without a named backend moves from the first to the second."""
    monkeypatch.setattr(compiled, "PATIENCE", 2)
    elbo = sgc.infer.TraceGraph_ELBO()
    for _ in range(2):
        elbo.loss(model, guide, X)
    (specialization,) = elbo.compiled(model, guide).specializations
    assert specialization.backend_of(with_gradient=False).name == TIERS[1]
    assert specialization.backend_of(with_gradient=True).name == TIERS[0]
