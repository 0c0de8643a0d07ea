"""What a NaN, a failing report or Ctrl-C leaves behind: everything as it was, and the next step works."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import NanLossError, StandInWarning
from sgc.training import stretches
from tests.training.programs import DATA, GAUSSIAN, NAN, ONE, SCALED, fresh, values


def nan_step(svi: sgc.SVI, *args: Any) -> float:
    """A step with a NaN among its arguments: the loss, after Pyro's warning."""
    with pytest.warns(UserWarning, match="NaN"):
        return svi.step(*args)


@pytest.mark.cpu
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_nan_leaves_running_statistics_as_they_were(steps_before: int, uncompiled: None) -> None:
    norm, x = nn.BatchNorm1d(2), torch.randn(5, 2)

    def model(x: Tensor) -> None:
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(norm(x), 1.0).to_event(1), obs=x)

    with pyro.validation_enabled(False):
        svi = fresh(program=(model, lambda x: None))
        for _ in range(steps_before):
            svi.step(x)
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        nan_step(svi, x * NAN)
        torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
        svi.step(x)
    assert norm.num_batches_tracked == steps_before + 1


@pytest.mark.cpu
def test_a_line_search_that_meets_nan_is_not_taken(uncompiled: None) -> None:
    with pyro.validation_enabled(False):
        svi = fresh(lambda p: torch.optim.LBFGS(p, lr=0.1), program=SCALED)
        with pytest.warns(StandInWarning, match="LBFGS evaluates the loss itself"):
            for _ in range(3):
                svi.step(ONE)
        before = values()
        state = svi.stepper.optimizing.optimizer.state_dict()["state"][0]
        evaluations = state["func_evals"]
        loss = nan_step(svi, NAN)
        assert loss != loss
        assert values() == before
        state = svi.stepper.optimizing.optimizer.state_dict()["state"][0]
        assert state["func_evals"] == evaluations
        svi.step(ONE)
    assert values()["p"].isfinite()


@pytest.mark.cpu
def test_steps_go_on_where_the_report_of_a_nan_fails(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("no report")

    with pyro.validation_enabled(False):
        svi = fresh(program=SCALED)
        svi.run(2, ONE)
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no report"):
            patched.setattr(stretches, "nan_loss_error", failing)
            svi.run([ONE, NAN])
        before = values()
        draws = torch.get_rng_state()
        svi.step(ONE)
    assert values() != before
    assert not torch.equal(torch.get_rng_state(), draws)


# -- Ctrl-C


def test_a_ctrl_c_after_the_last_step_is_not_lost(uncompiled: None, interruptible: None) -> None:
    def batches() -> Iterator[Tensor]:
        yield DATA
        signal.raise_signal(signal.SIGINT)

    svi = fresh(program=GAUSSIAN)
    with pytest.raises(KeyboardInterrupt):
        svi.run(batches())
    assert len(svi.result.losses) == 1


def test_a_users_own_handler_of_ctrl_c_is_called(uncompiled: None) -> None:
    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            yield DATA

    seen: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        assert len(fresh(program=GAUSSIAN).run(batches()).losses) == 3
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == [signal.SIGINT] * 3


def test_a_ctrl_c_that_is_ignored_stays_so(uncompiled: None) -> None:
    """As in a process that a shell runs in the background."""

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            yield DATA

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert len(fresh(program=GAUSSIAN).run(batches()).losses) == 3
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_run_on_another_thread_leaves_ctrl_c_to_the_main_one(uncompiled: None, interruptible: None) -> None:
    handlers: list[Any] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            handlers.append(signal.getsignal(signal.SIGINT))
            yield DATA

    svi = fresh(program=GAUSSIAN)
    thread = threading.Thread(target=lambda: svi.run(batches()))
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler] * 3
    assert len(svi.result.losses) == 3


def test_a_handler_that_is_set_during_a_run_stays(uncompiled: None, interruptible: None) -> None:
    def own(number: int, frame: Any) -> None:
        pass

    def batches() -> Iterator[Tensor]:
        yield DATA
        signal.signal(signal.SIGINT, own)
        yield DATA

    assert len(fresh(program=GAUSSIAN).run(batches()).losses) == 2
    assert signal.getsignal(signal.SIGINT) is own


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("given", ["a number", "minibatches"])
def test_a_run_that_ends_with_a_nan_has_drawn_for_the_steps_before_it(
    given: str, backend: str, uncompiled: None
) -> None:
    def run(svi: sgc.SVI, good: int, bad: int) -> None:
        if given == "minibatches":
            svi.run([ONE] * good + [NAN] * bad)
        else:
            svi.run(good, ONE)
            svi.run(bad, NAN)

    with pyro.validation_enabled(False):
        svi = fresh(program=SCALED, backend=backend)
        run(svi, 3, 0)
        expected = torch.get_rng_state()
        svi = fresh(program=SCALED, backend=backend)
        with pytest.raises(NanLossError), pytest.warns(UserWarning) if backend == "eager" else nullcontext():
            run(svi, 3, 2)
    assert torch.equal(torch.get_rng_state(), expected)
