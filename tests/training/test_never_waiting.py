"""Steps that do not wait for the compiler: the numbers are the same, wherever they change over to what is compiled."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer
from sgc.config import Options
from sgc.emit.inductor.background.compile_request import Answer
from sgc.emit.inductor.background.compiler_process import compiled_by
from sgc.errors import ArgumentError, NanLossError
from sgc.runtime.background import compiled_elsewhere as background
from sgc.training import progress
from tests.programs import local_switches
from tests.training.compilers import AtRequest
from tests.training.programs import DATA, DECAYING, GAUSSIAN, NAN, ONE, SCALED, adam, values

pytestmark = pytest.mark.cpu


@pytest.fixture
def elsewhere() -> Iterator[AtRequest]:
    """The process that compiles, under the control of the test."""
    compiler = AtRequest()
    with compiled_by(compiler):
        yield compiler


def fresh(program: Any, optim: Any = adam, rng: Any = "torch", **options: Any) -> sgc.SVI:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    elbo = sgc.infer.TraceGraph_ELBO(**{"backend": "inductor", "rng": rng, "wait": False, **options})
    return sgc.SVI(*program, optim, elbo)


def eagerly(program: Any, optim: Callable[[], Any], calls: list[tuple[Tensor, ...]]) -> list[float]:
    """The losses of eager Pyro."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    svi = pyro.infer.SVI(*program, optim(), pyro.infer.TraceGraph_ELBO())
    return [svi.step(*call) for call in calls]


def gammas(data: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("switch", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(rate, 1.0), obs=data)


def gamma_guide(data: Tensor) -> None:
    shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("switch", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(data)))))


def several_draws(data: Tensor) -> None:
    """Draws of several kinds, which may be merged or taken in another order."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    k = pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(data)):
        u = pyro.sample("u", dist.Uniform(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum() + k + rate + u, 1.0), obs=data)


def guide_of_several(data: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(3))
    shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
    pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.zeros(4))))
    pyro.sample("rate", dist.Gamma(shape, 1.0))
    pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))
    with pyro.plate("data", len(data)):
        low = pyro.param("low", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
        pyro.sample("u", dist.Uniform(0.0, low + 0.5))


PROGRAMS = {
    "Gaussian": GAUSSIAN,
    "averages": local_switches(DECAYING),
    "gammas": (gammas, gamma_guide),
    "several draws": (several_draws, guide_of_several),
}
OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "clipped": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9}),
    "momentum": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01, "centered": True}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.05, "amsgrad": True}),
}


# -- the numbers


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_uncompiled_steps_are_those_of_pyro(program: str, optimizer: str, elsewhere: AtRequest) -> None:
    theirs = eagerly(PROGRAMS[program], OPTIMIZERS[optimizer], [(DATA,)] * 6)
    expected = values()
    svi = fresh(PROGRAMS[program], OPTIMIZERS[optimizer]())
    assert [svi.step(DATA) for _ in range(6)] == pytest.approx(theirs, rel=1e-5)
    assert svi.stepper.runs_uncompiled() and len(elsewhere.requests) == 1
    ours = values()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, msg=name)


@pytest.mark.inductor
@pytest.mark.parametrize("rng", ["torch", "fast"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_losses_do_not_depend_on_when_the_change_comes(program: str, rng: Any, elsewhere: AtRequest) -> None:
    runs = []
    for change in (2, 5, 12):
        elsewhere.due = False
        svi = fresh(PROGRAMS[program], rng=rng)
        losses = []
        for step in range(12):
            elsewhere.due = step >= change
            losses.append(svi.step(DATA))
            assert step == 0 or svi.stepper.runs_uncompiled() == (step < change)
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[2], rel=1e-4)
    assert runs[1] == pytest.approx(runs[2], rel=1e-4)
    if rng == "torch":
        assert runs[0] == pytest.approx(eagerly(PROGRAMS[program], slow_adam, [(DATA,)] * 12), rel=1e-4)


def slow_adam() -> Any:
    return pyro.optim.Adam({"lr": 0.03})


@pytest.mark.inductor
@pytest.mark.parametrize("rng", ["torch", "fast"])
def test_a_loop_of_ones_own_changes_over_too(rng: Any, elsewhere: AtRequest) -> None:
    def train(wait: bool, change: int = 0) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        elsewhere.due = False
        loss_module = sgc.compile(*local_switches(DECAYING), rng=rng, wait=wait).initialize(DATA)
        optimizer = torch.optim.Adam(loss_module.parameters(), lr=0.03)
        losses = []
        for step in range(6):
            elsewhere.due = step >= change
            optimizer.zero_grad()
            loss = loss_module(DATA)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                assert loss_module(DATA).isfinite()
        return losses

    waited = train(True)
    assert train(False, 3) == pytest.approx(waited, rel=1e-4)
    assert train(False, 99) == pytest.approx(waited, rel=1e-4)
    assert elsewhere.requests
    assert not any("normal_functional" in one.text for one in elsewhere.requests)


def test_many_particles(elsewhere: AtRequest) -> None:
    options = {"num_particles": 7}
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    theirs = pyro.infer.SVI(*GAUSSIAN, pyro.optim.Adam({"lr": 0.03}), pyro.infer.TraceGraph_ELBO(**options))
    expected = [theirs.step(DATA) for _ in range(5)]
    svi = fresh(GAUSSIAN, **options)
    assert [svi.step(DATA) for _ in range(5)] == pytest.approx(expected, rel=1e-5)
    assert svi.stepper.runs_uncompiled()


@pytest.mark.inductor
def test_many_particles_change_over(elsewhere: AtRequest) -> None:
    waited = fresh(GAUSSIAN, num_particles=7, wait=True)
    expected = [waited.step(DATA) for _ in range(6)]
    svi = fresh(GAUSSIAN, num_particles=7)
    losses = [svi.step(DATA) for _ in range(3)]
    elsewhere.due = True
    losses += [svi.step(DATA) for _ in range(3)]
    assert not svi.stepper.runs_uncompiled()
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(elsewhere.requests[0].text) > 0


def test_a_network_whose_parameters_are_matrices(elsewhere: AtRequest) -> None:
    def programs() -> Any:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

        def model(x: Tensor) -> None:
            pyro.module("net", net)
            with pyro.plate("rows", len(x)):
                pyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=x.sum(-1))

        return model, lambda x: None

    x = torch.randn(5, 3)
    theirs = eagerly(programs(), lambda: pyro.optim.Adam({"lr": 0.03, "weight_decay": 0.1}), [(x,)] * 5)
    svi = fresh(programs(), pyro.optim.Adam({"lr": 0.03, "weight_decay": 0.1}))
    assert [svi.step(x) for _ in range(5)] == pytest.approx(theirs, rel=1e-5)
    assert svi.stepper.runs_uncompiled()


# -- several shapes, states, NaN


@pytest.mark.inductor
def test_several_versions_change_over_one_by_one(elsewhere: AtRequest) -> None:
    batches = [DATA, DATA.double()] * 5
    theirs = eagerly(GAUSSIAN, slow_adam, [(batch,) for batch in batches])
    svi = fresh(GAUSSIAN)
    losses = [svi.step(batch) for batch in batches[:6]]
    assert len(elsewhere.requests) == 2
    elsewhere.due = True
    losses += [svi.step(batch) for batch in batches[6:]]
    assert losses == pytest.approx(theirs, rel=1e-5)
    assert all(bound.built.compiled for bound in svi.stepper.compiled.bound)


@pytest.mark.inductor
def test_a_version_for_any_size_runs_uncompiled(elsewhere: AtRequest, caplog: pytest.LogCaptureFixture) -> None:
    batches = [DATA, DATA, DATA[:2], DATA, torch.cat([DATA, DATA]), DATA[:2]]
    theirs = eagerly(GAUSSIAN, slow_adam, [(batch,) for batch in batches])
    svi = fresh(GAUSSIAN)
    with caplog.at_level(logging.INFO, "sgc"):
        losses = [svi.step(batch) for batch in batches]
    assert losses == pytest.approx(theirs, rel=1e-5)
    assert len(elsewhere.requests) == 1
    said = "the training step (the shape of args[0] was [3], is [2]) runs operator by operator until it pays"
    assert said in caplog.text


@pytest.mark.inductor
def test_a_run_resumes_across_the_change(elsewhere: AtRequest) -> None:
    svi = fresh(local_switches(DECAYING))
    svi.run(5, DATA)
    assert svi.stepper.runs_uncompiled()
    state = svi.state_dict()
    expected = svi.run(10, DATA).losses
    elsewhere.due = True
    svi.load_state_dict(state)
    resumed = svi.run(10, DATA).losses
    assert not svi.stepper.runs_uncompiled()
    torch.testing.assert_close(resumed, expected)
    later = svi.state_dict()
    expected = svi.run(5, DATA).losses
    other = fresh(local_switches(DECAYING)).initialize(DATA)
    elsewhere.due = False
    other.load_state_dict(later)
    torch.testing.assert_close(other.run(5, DATA).losses, expected)
    assert other.stepper.runs_uncompiled()


def test_a_step_with_a_nan_writes_nothing(elsewhere: AtRequest) -> None:
    svi = fresh(SCALED)
    svi.run(3, ONE)
    before, state = values(), svi.state_dict()["optimizer"]
    with pytest.raises(NanLossError, match="step 1"):
        svi.run(3, NAN)
    assert svi.stepper.runs_uncompiled()
    assert values() == before
    assert str(svi.state_dict()["optimizer"]) == str(state)
    svi.run(1, ONE)
    assert values() != before


def test_an_invalid_value_raises_pyros_error_and_writes_nothing(elsewhere: AtRequest) -> None:
    def model(scale: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale), obs=torch.tensor(1.0))

    svi = fresh((model, SCALED[1]))
    for _ in range(3):
        svi.step(ONE)
    assert svi.stepper.runs_uncompiled()
    before = values()
    with pytest.raises(ValueError, match="constraint"):
        svi.step(-ONE)
    assert values() == before
    svi.step(ONE)


def test_a_changed_rate_takes_effect(elsewhere: AtRequest) -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.1))
        return made[-1]

    svi = fresh(GAUSSIAN, optimizer)
    for _ in range(3):
        svi.step(DATA)
    made[-1].param_groups[0]["lr"] = 0.0
    before = values()
    svi.step(DATA)
    assert values() == before and svi.stepper.runs_uncompiled()


# -- what cannot be compiled elsewhere


@pytest.mark.inductor
def test_what_another_process_would_not_know_is_waited_for(
    elsewhere: AtRequest, caplog: pytest.LogCaptureFixture
) -> None:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.VonMises(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data.sum())

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.VonMises(pyro.param("loc", torch.tensor(0.1)), 2.0))

    with caplog.at_level(logging.INFO, "sgc"):
        svi = fresh((model, guide))
        for _ in range(2):
            svi.step(DATA)
    assert not svi.stepper.runs_uncompiled() and not elsewhere.requests
    assert re.search(r"the training step \(the first call\) is compiled in this process: it has a call of", caplog.text)


@pytest.mark.inductor
def test_what_fails_elsewhere_is_compiled_here(caplog: pytest.LogCaptureFixture) -> None:
    compiler = AtRequest(failure="no such luck")
    with compiled_by(compiler), caplog.at_level(logging.WARNING, "sgc"):
        svi = fresh(GAUSSIAN)
        losses = [svi.step(DATA) for _ in range(3)]
        assert svi.stepper.runs_uncompiled()
        compiler.due = True
        losses += [svi.step(DATA) for _ in range(3)]
    assert not svi.stepper.runs_uncompiled()
    assert "compiling the training step (the first call) in another process has failed: no such luck" in caplog.text
    assert losses == pytest.approx(eagerly(GAUSSIAN, slow_adam, [(DATA,)] * 6), rel=1e-5)


@pytest.mark.inductor
def test_libraries_that_are_gone_are_compiled_here(
    elsewhere: AtRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    svi = fresh(GAUSSIAN)
    losses = [svi.step(DATA) for _ in range(2)]
    (request,) = elsewhere.requests
    made = request.answer
    assert made is not None
    request._answer = Answer((str(tmp_path / "gone.so"),), made.functions, made.native)
    elsewhere.due = True
    with caplog.at_level(logging.WARNING, "sgc"):
        losses += [svi.step(DATA) for _ in range(2)]
    assert "cannot be loaded" in caplog.text and not svi.stepper.runs_uncompiled()
    assert losses == pytest.approx(eagerly(GAUSSIAN, slow_adam, [(DATA,)] * 4), rel=1e-5)


# -- when one waits


@pytest.mark.parametrize(
    ("given", "variable", "deterministic", "waits"),
    [
        (None, "0", False, False),
        (None, "1", False, True),
        (None, "0", True, True),
        (False, "1", True, False),
        (True, "0", False, True),
    ],
)
def test_who_says_whether_one_waits(
    given: bool | None, variable: str, deterministic: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGC_WAIT", variable)
    monkeypatch.setattr(background, "cores", lambda: 2)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert background.waits(Options(wait=given)) == waits
    monkeypatch.setattr(background, "cores", lambda: 1)
    assert background.waits(Options(wait=given)) == (given is not False)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ArgumentError, match="wait must be True, False or None, not 'never'"):
        sgc.compile(*GAUSSIAN, wait="never")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="wait is for the loss that SVI makes itself"):
        sgc.SVI(*GAUSSIAN, adam, sgc.infer.TraceGraph_ELBO(), wait=False)


# -- what is told


@pytest.mark.inductor
def test_the_progress_says_what_takes_the_steps(elsewhere: AtRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Telling(progress.Lines):
        def show(self, taken: int, elbo: Callable[[], str]) -> None:
            shown.append(elbo())
            elsewhere.due = len(shown) > 3

    monkeypatch.setattr(progress, "Lines", Telling)
    svi = fresh(GAUSSIAN)
    svi.run([DATA] * 8, progress_bar=True)
    assert [text.rpartition(", ")[2] for text in shown[1:]] == ["eager"] * 3 + ["compiled"] * 4
    shown.clear()
    svi.run([DATA] * 2, progress_bar=True)
    assert not any("compiled" in text for text in shown), "from the start of this run"


def test_the_log_says_what_is_compiled_and_why(elsewhere: AtRequest, caplog: pytest.LogCaptureFixture) -> None:
    svi = fresh(GAUSSIAN)
    with caplog.at_level(logging.INFO, "sgc"):
        for data in (DATA, DATA, DATA.double()):
            svi.step(data)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "compiling the training step (the first call) in the background"
    assert re.fullmatch(r"compiling the training step \(.*float32.*float64.*\) in the background", second)


# -- the ELBO classes


@pytest.mark.inductor
def test_the_second_tier_of_an_elbo_is_not_waited_for(elsewhere: AtRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgc.infer.compiled.PATIENCE", 3)
    program = local_switches(DECAYING)
    theirs = eagerly(program, slow_adam, [(DATA,)] * 9)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    elbo = sgc.infer.TraceGraph_ELBO(wait=False)
    svi = pyro.infer.SVI(*program, slow_adam(), elbo)
    losses = [svi.step(DATA) for _ in range(3)]
    assert not elsewhere.requests, "a short run never compiles"
    losses += [svi.step(DATA) for _ in range(3)]
    (specialization,) = elbo.compiled(*program).specializations
    (compiled,) = specialization.compiled.values()
    assert len(elsewhere.requests) == 1 and compiled.change is not None
    elsewhere.due = True
    losses += [svi.step(DATA) for _ in range(3)]
    (compiled,) = specialization.compiled.values()
    assert compiled.change is None and compiled.calls == 6
    assert losses == pytest.approx(theirs, rel=1e-5)


@pytest.mark.inductor
def test_speculated_branches_go_on_across_the_change(elsewhere: AtRequest) -> None:
    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = 1.0 if z > -0.5 else 2.0
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(z, scale), obs=data)

    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    def train(change: int, wait: bool) -> list[float]:
        elsewhere.due = False
        svi = fresh((model, guide), dynamic="speculate", wait=wait)
        losses = []
        for step in range(14):
            elsewhere.due = step >= change
            losses += svi.run(2, DATA).losses.tolist()
        return losses

    waited = train(0, True)
    assert train(4, False) == pytest.approx(waited, rel=1e-4)
    assert elsewhere.requests


@pytest.mark.inductor
def test_verify_waits_for_what_is_compiled(elsewhere: AtRequest) -> None:
    loss_module = sgc.compile(*local_switches(), rng="torch", wait=False)
    loss_module(DATA).backward()
    (compiled,) = loss_module.specializations[0].compiled.values()
    assert compiled.change is not None
    elsewhere.due = True
    assert loss_module.verify(DATA)
    (compiled,) = loss_module.specializations[0].compiled.values()
    assert compiled.change is None


def test_an_interrupted_run_goes_on(elsewhere: AtRequest, interruptible: None) -> None:
    svi = fresh(GAUSSIAN)
    svi.run(5, DATA)
    stopped = 0

    class Interrupting(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            for number, item in enumerate(super().__iter__()):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                yield item

    with pytest.raises(KeyboardInterrupt):
        svi.run(Interrupting([DATA] * 10))
    stopped = len(svi.result.losses)
    assert 3 <= stopped < 10 and svi.stepper.runs_uncompiled()
    assert len(svi.run(4, DATA).losses) == 4


def test_threads_take_turns(elsewhere: AtRequest) -> None:
    svi = fresh(GAUSSIAN)
    svi.step(DATA)
    losses: list[float] = []
    failures: list[BaseException] = []

    def train() -> None:
        try:
            losses.extend(svi.step(DATA) for _ in range(20))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(losses) == 60 and len(elsewhere.requests) == 1
