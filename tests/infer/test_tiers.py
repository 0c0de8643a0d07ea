"""Without a backend named, a specialization runs eagerly for a thousand calls, then compiled by Inductor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, fx

import sgc.infer
from sgc.config import Rng
from sgc.emit.backends.eager import Eager
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.protocol import Backend
from sgc.emit.backends.registry import registered
from sgc.emit.backends.torchscript import TorchScript
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.optimize import Optimized, Report
from sgc.errors import BackendError, StandInWarning
from sgc.infer import compiled
from tests.programs import local_switches

DATA = torch.tensor([0.3, -1.2, 0.8])


def noting(kind: type[Backend], built: list[str]) -> Backend:
    """A backend of this kind that compiles nothing, and notes when it builds."""

    class Noting(kind):  # type: ignore[misc, valid-type]
        def after_gradient(self, module: fx.GraphModule, examples: Sequence[Tensor], rng: Rng) -> Optimized:
            return Optimized(module, Report())

        def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
            built.append(self.name)
            assert rng == "torch"
            return Eager().build(optimized, examples, rng)

    made: Backend = Noting()
    return made


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The backends that were built, in order; none of them compiles anything."""
    built: list[str] = []
    monkeypatch.setattr(compiled, "PATIENCE", 3)
    with ExitStack() as stack:
        for kind in (Eager, Inductor, TorchScript):
            stack.enter_context(registered(noting(kind, built)))
        yield built


def train(elbo: Any, steps: int, data: torch.Tensor = DATA, program: Any = None) -> list[float]:
    pyro.set_rng_seed(1)
    svi = pyro.infer.SVI(*(program or local_switches()), pyro.optim.Adam({"lr": 0.05}), elbo)
    return [svi.step(data) for _ in range(steps)]


def test_after_some_calls_inductor_takes_over(backends: list[str]) -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), local_switches()
    train(elbo, 3, program=program)
    assert backends == ["eager"]
    train(elbo, 3, program=program)
    assert backends == ["eager", "inductor"]
    train(elbo, 2, DATA[:2], program)
    assert backends == ["eager", "inductor", "eager"], "each specialization counts on its own"


def test_the_loss_alone_counts_on_its_own(backends: list[str]) -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), local_switches()
    train(elbo, 4, program=program)
    for _ in range(3):
        elbo.loss(*program, DATA)
    assert backends == ["eager", "inductor", "eager"]
    elbo.loss(*program, DATA)
    assert backends == ["eager", "inductor", "eager", "inductor"]


def _ask(what: str, elbo: sgc.infer.TraceGraph_ELBO, program: Any) -> None:
    module = elbo.compiled(*program)
    if what == "verify":
        assert module.verify(DATA)
    elif what == "evaluate the loss":
        elbo.loss(*program, DATA)
    else:
        assert module.guards() and module.code and module.specializations
        module.initialize(DATA)


@pytest.mark.parametrize("what", ["verify", "evaluate the loss", "look"])
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("times", [1, 4])
def test_what_is_no_training_call_neither_delays_the_move_nor_brings_it(
    what: str, after: int, times: int, backends: list[str]
) -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), local_switches()
    for number in range(3):
        train(elbo, 1, program=program)
        if number + 1 == after:
            for _ in range(times):
                _ask(what, elbo, program)
    (made,) = elbo.compiled(*program).specializations
    assert made.calls(with_gradient=True) == 0, "what it counts is of its present backend"
    assert made.backend_of(with_gradient=True).name == "inductor"
    assert made.calls(with_gradient=False) == (what == "evaluate the loss"), (
        "of four calls three preceded a move of their own"
    )


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_training_step_moves_too_whatever_was_asked_in_between(after: int, backends: list[str]) -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), local_switches()
    svi = sgc.SVI(*program, pyro.optim.Adam({"lr": 0.05}), elbo)
    for number in range(3):
        svi.step(DATA)
        if number + 1 == after:
            assert svi.loss_module.verify(DATA)
            svi.evaluate_loss(DATA)
    assert svi.loss_module.specializations[-1].backend_of(with_gradient=True).name == "inductor"


def test_a_specialization_that_has_waited_longer_moves_at_its_next_call(
    backends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elbo, program = sgc.infer.TraceGraph_ELBO(), local_switches()
    with monkeypatch.context() as patient:
        patient.setattr(compiled, "PATIENCE", 1000)
        train(elbo, 7, program=program)
    assert backends == ["eager"]
    train(elbo, 2, program=program)
    assert backends == ["eager", "inductor"]


@pytest.mark.parametrize("backend", ["eager", "inductor", "torchscript"])
def test_a_backend_that_is_named_is_used_from_the_first_call_on(backends: list[str], backend: Any) -> None:
    train(sgc.infer.TraceGraph_ELBO(backend=backend), 5)
    assert backends == [backend]


class WithoutCompiler(Inductor):
    def build(self, optimized: Optimized, examples: list[Any], rng: Rng) -> Runner:
        raise BackendError("Inductor needs a C++ compiler and found none", remedy="install one")


def test_without_a_compiler_it_stays_eager_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PATIENCE", 2)
    with registered(WithoutCompiler()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours = train(sgc.infer.TraceGraph_ELBO(), 8)
        assert [w.category for w in caught] == [StandInWarning]
        assert "install one" in str(caught[0].message)
        pyro.clear_param_store()
        assert ours == train(sgc.infer.TraceGraph_ELBO(backend="eager"), 8)
        with pytest.raises(BackendError):
            train(sgc.infer.TraceGraph_ELBO(backend="inductor"), 1)


@pytest.mark.inductor
def test_the_change_does_not_show_in_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = train(sgc.infer.TraceGraph_ELBO(backend="eager"), 8)
    pyro.clear_param_store()
    monkeypatch.setattr(compiled, "PATIENCE", 4)
    assert train(sgc.infer.TraceGraph_ELBO(), 8) == pytest.approx(eager, rel=1e-5)


def test_a_program_that_writes_into_memory_of_other_inputs_stays_on_the_eager_backend(backends: list[str]) -> None:
    def model(x: Tensor, y: Tensor) -> None:
        x.add_(1.0)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y.sum(), 1.0), obs=x.sum())

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))

    def losses(elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        return [svi.step(x, x[1:]) for x in (torch.arange(3.0) for _ in range(6))]

    expected = losses(pyro.infer.TraceGraph_ELBO())
    assert losses(sgc.infer.TraceGraph_ELBO()) == pytest.approx(expected)
    assert backends == ["eager"]
