"""What is for any size runs operator by operator, with Pyro's numbers at each size, until it pays to compile it."""

from __future__ import annotations

import logging
import time
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest

import sgc
from sgc.emit.inductor.background.compiler_process import PendingCompilation, compiled_by
from sgc.runtime.background import compiled_elsewhere as background
from sgc.runtime.background import postponed
from tests.infer.test_symbolic_sizes import (
    PROGRAMS,
    Averaged,
    Coinciding,
    Minibatch,
    Program,
    Switches,
    by_itself,
    of_pyro,
    of_sgc,
    trained,
)
from tests.infer.test_symbolic_sizes import fresh as fresh  # a fixture
from tests.training.compilers import AtRequest

PROGRAMS_TO_RUN = [kind for kind in PROGRAMS if kind.__name__ != "Opaque"]  # what calls Python is waited for
ADAM = {"lr": 0.05}


@pytest.mark.parametrize("kind", PROGRAMS_TO_RUN)
def test_losses_and_gradients(kind: type[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postponed, "_longest", [1e9])
    with compiled_by(AtRequest()):
        values, made = of_sgc(kind(), "inductor", wait=False)
    expected = by_itself(kind()) if kind is Averaged else of_pyro(kind())
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert made == kind.made


def of_pyros_steps(kind: type[Program]) -> list[float]:
    elbo = pyro.infer.TraceGraph_ELBO()
    return trained(kind, lambda model, guide: pyro.infer.SVI(model, guide, pyro.optim.Adam(ADAM), elbo))


@pytest.mark.parametrize("kind", [Switches, Coinciding, Minibatch])
def test_steps(kind: type[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postponed, "_longest", [1e9])
    made: list[sgc.SVI] = []

    def ours(model: Any, guide: Any) -> sgc.SVI:
        elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", wait=False)
        made.append(sgc.SVI(model, guide, pyro.optim.Adam(ADAM), elbo))
        return made[-1]

    with compiled_by(AtRequest()):
        assert trained(kind, ours) == pytest.approx(of_pyros_steps(kind), rel=1e-4)
    assert made[0].stepper.runs_uncompiled()


@pytest.mark.inductor
@pytest.mark.parametrize("of_losses", [False, True])
def test_compiled_once_it_pays(
    of_losses: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The compilation is waited for after the uncompiled program has run for as long as that may take."""
    monkeypatch.setattr(postponed, "_longest", [1e-9])
    monkeypatch.setattr(postponed, "_under_way", [])  # what other tests have asked for
    monkeypatch.setattr(background, "note_begun", lambda asked: None)  # that of the first size never ends here
    made: list[sgc.SVI] = []

    def ours(model: Any, guide: Any) -> sgc.SVI:
        elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", wait=False)
        made.append(sgc.SVI(model, guide, pyro.optim.Adam(ADAM), elbo))
        return made[-1]

    with compiled_by(AtRequest()), caplog.at_level(logging.INFO, "sgc"):
        if of_losses:
            values, versions = of_sgc(Switches(), "inductor", wait=False)
            assert values == pytest.approx(of_pyro(Switches()), rel=1e-4, abs=1e-5)
            assert versions == 2
        else:
            assert trained(Switches, ours) == pytest.approx(of_pyros_steps(Switches), rel=1e-4)
    assert any("until it pays" in record.message for record in caplog.records)
    assert any(record.message.startswith("compiling") and "shape" in record.message for record in caplog.records)


def test_a_compilation_that_is_under_way_counts_for_as_long_as_it_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postponed, "_longest", [0.01])
    monkeypatch.setattr(postponed, "_under_way", [])
    compiler = AtRequest()
    asked = postponed.Postponed(spent=5.0)
    assert asked.is_done()
    postponed.note_begun(PendingCompilation("a program", compiler.submit("")))
    postponed._under_way[0] = (postponed._under_way[0][0], time.perf_counter() - 100.0)
    assert not asked.is_done()
    asked.spent = 101.0
    assert asked.is_done()
    asked.spent = 5.0
    compiler.due = True
    assert asked.is_done()
