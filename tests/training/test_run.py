"""Many steps: the same path as single ones, stopped between steps and resumed to the last bit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import sgc
from sgc.errors import ArgumentError, NanLossError, SgcError, StandInWarning
from tests.programs import local_switches
from tests.training.programs import DATA, DECAYING, adam, fresh, is_compiled, make_svi, train, values

STEPS = 9


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_is_so_many_steps(uncompiled: None) -> None:
    losses, expected, _ = train(adam, STEPS, "inductor")
    svi = fresh()
    result = svi.run(STEPS, DATA)
    assert result.losses.tolist() == losses
    same(values(), expected)
    assert svi.result.losses.tolist() == losses
    assert f"{STEPS} steps" in str(result)


def test_no_steps(uncompiled: None) -> None:
    assert fresh().run(0, DATA).losses.shape == (0,)


@pytest.mark.parametrize("kind", ["tensors", "tuples", "mappings", "loader"])
def test_minibatches(kind: str, uncompiled: None) -> None:
    data = torch.randn(6, 3)
    expected_svi = fresh()
    losses = [expected_svi.step(batch) for _ in range(2) for batch in data]
    batches: Any = {
        "tensors": list(data),
        "tuples": [(batch,) for batch in data],
        "mappings": [{"x": batch} for batch in data],
        "loader": torch.utils.data.DataLoader(data, batch_size=None),  # type: ignore[arg-type]
    }[kind]
    svi = fresh()
    if kind == "loader":
        svi.initialize(DATA)
        pyro.set_rng_seed(1)  # an iteration over a loader draws a seed for its workers
        assert len(svi.run(batches, epochs=2).losses) == len(losses)
    else:
        assert svi.run(batches, epochs=2).losses.tolist() == losses


def test_losses_keep_their_dtypes_and_their_order() -> None:
    """Those of minibatches are numbers until they are asked for; batches of another dtype are another program."""
    batches = [DATA] * 3 + [DATA.double()] * 3 + [DATA] * 2

    def losses(run: bool) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = make_svi(adam)
        if not run:
            return [svi.step(batch) for batch in batches]
        found = svi.run(batches).losses
        assert found.dtype is torch.float64 and is_compiled(svi, DATA)
        return found.tolist()

    assert losses(run=True) == losses(run=False)


def test_a_plate_draws_new_minibatches_within_a_run(uncompiled: None) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    data = torch.arange(100.0)
    svi = fresh(lambda p: torch.optim.SGD(p, lr=0.0), program=(model, lambda x: None))
    losses = svi.run(50, data).losses
    assert len(set(losses.tolist())) > 40
    assert not seen


def test_buffers_and_averages_move(uncompiled: None) -> None:
    norm = nn.BatchNorm1d(2)

    def model(x: Tensor) -> None:
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(norm(x), 1.0).to_event(1), obs=x)

    x = torch.randn(5, 2)
    svi = fresh(pyro.optim.Adam({"lr": 0.1}), program=(model, lambda x: None))
    svi.run(4, x)
    assert norm.num_batches_tracked.item() == 4
    expected = torch.zeros(2)
    for _ in range(4):
        expected = 0.9 * expected + 0.1 * x.mean(0)
    torch.testing.assert_close(norm.running_mean, expected)


@pytest.mark.parametrize("compiled", [True, False])
def test_ctrl_c_takes_effect_between_two_steps(compiled: bool, uncompiled: None, interruptible: None) -> None:
    _, expected, _ = train(adam, 4, "inductor" if compiled else "eager")

    def batches() -> Iterator[Tensor]:
        for number in range(10):
            if number == 3:
                signal.raise_signal(signal.SIGINT)
            yield DATA

    svi = fresh(backend="inductor" if compiled else "eager")
    with pytest.raises(KeyboardInterrupt):
        svi.run(batches())
    assert len(svi.result.losses) == 4
    same(values(), expected)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- NaN


def sinking(infer: dict[str, Any] | None = None) -> Any:
    """``scale`` sinks by 0.1 at each step, and is NaN under the square root once it is below 0."""

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.35))
        pyro.sample("fine", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("sinks", scale + 0 * scale.sqrt())

    return model, lambda x: None


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, maximize=True, momentum=0.5, dampening=0.5)


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["inductor", "eager"])
def test_a_run_stops_at_nan_and_names_step_and_site(backend: str, uncompiled: None) -> None:
    pyro.clear_param_store()
    svi = make_svi(sgd, program=sinking(), backend=backend, validate=False)
    with pytest.warns(UserWarning) if backend == "eager" else _nothing(), pytest.raises(NanLossError) as caught:
        svi.run(50, torch.tensor(0.0))
    good = len(svi.result.losses)
    assert f"the loss of step {good + 1} is NaN" in str(caught.value)
    assert caught.value.site == "sinks"
    assert "pyro.factor" in str(caught.value)
    assert pyro.param("scale").item() < 0
    before = values()
    again = make_svi(sgd, program=sinking(), backend=backend, validate=False)
    pyro.clear_param_store()
    again.run(good, torch.tensor(0.0))
    same(values(), before)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.cpu
def test_a_step_that_gives_nan_warns_and_changes_nothing(uncompiled: None) -> None:
    pyro.clear_param_store()
    svi = make_svi(sgd, program=sinking(), validate=False)
    while True:
        before, state = values(), _momentum(svi)
        with _recorded() as warned:
            loss = svi.step(torch.tensor(0.0))
        if loss != loss:
            break
    assert any("nan" in str(w.message).lower() for w in warned)
    same(values(), before)
    assert torch.equal(_momentum(svi), state)
    with torch.no_grad():
        pyro.get_param_store()._params["scale"].fill_(0.35)
    assert svi.step(torch.tensor(0.0)) == pytest.approx(-0.35 + 0.9189385)  # it is not halted for ever
    assert values()["scale"] != 0.35


def _momentum(svi: sgc.SVI) -> Tensor:
    if not svi.stepper.started:
        return torch.tensor(0.0)
    (state,) = svi.stepper.optimizing.optimizer.state.values()  # type: ignore[attr-defined]
    return state["momentum_buffer"].clone()


def _recorded() -> Any:
    import warnings

    class Recording(warnings.catch_warnings):
        def __enter__(self) -> Any:
            found = super().__enter__()
            warnings.simplefilter("always")
            return found

    return Recording(record=True)


def test_a_nan_that_depends_on_the_draw_is_said_to(uncompiled: None) -> None:
    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))

    def guide() -> None:
        q = pyro.param("q", torch.tensor(0.05), constraint=constraints.unit_interval)
        z = pyro.sample("z", dist.Bernoulli(q))
        pyro.factor("rare", torch.where(z > 0, torch.tensor(float("nan")), q * 0), has_rsample=False)

    svi = make_svi(adam, program=(model, guide), validate=False)
    with pytest.raises(NanLossError, match="rare"):
        svi.run(200)


# -- checkpoints


def test_a_resumed_run_goes_on_to_the_last_bit(uncompiled: None, tmp_path: Any) -> None:
    svi = fresh()
    svi.run(4, DATA)
    torch.save(svi.state_dict(), tmp_path / "checkpoint.pt")
    losses, expected = svi.run(STEPS, DATA).losses, values()
    pyro.clear_param_store()
    pyro.set_rng_seed(99)
    resumed = make_svi(adam).initialize(DATA)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert torch.equal(resumed.run(STEPS, DATA).losses, losses)
    same(values(), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.9}),
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}),
    ],
    ids=["ClippedAdam", "a scheduler"],
)
def test_pyros_optimizers_are_resumed_too(make: Any, uncompiled: None) -> None:
    def go_on(svi: sgc.SVI) -> list[float]:
        losses = []
        for _ in range(4):
            losses.append(svi.step(DATA))
            if hasattr(svi.optim, "step"):
                svi.optim.step()
        return losses

    svi = fresh(make())
    go_on(svi)
    state = svi.state_dict()
    losses, expected = go_on(svi), values()
    pyro.clear_param_store()
    resumed = make_svi(make()).initialize(DATA)
    resumed.load_state_dict(state)
    assert go_on(resumed) == losses
    same(values(), expected)
    svi.load_state_dict(state)  # and in the same process
    # its own param store was cleared, so that its parameters are those of the resumed one
    assert go_on(svi) == losses


def test_another_programs_state_is_refused(uncompiled: None) -> None:
    svi = fresh()
    with pytest.raises(SgcError, match="no state to save yet"):
        svi.state_dict()
    svi.run(2, DATA)
    state = svi.state_dict()
    pyro.clear_param_store()
    other = make_svi(adam, program=sinking()).initialize(torch.tensor(0.0))
    before = values()
    with pytest.raises(SgcError, match="another program's: it has .*it lacks"):
        other.load_state_dict(state)
    same(values(), before)


# -- what is asked for


def test_wrong_arguments_are_refused(uncompiled: None) -> None:
    svi = fresh()
    for arguments, text in [
        ((-1, DATA), "must not be negative"),
        ((2.5, DATA), "a number of steps or minibatches, not a float"),
    ]:
        with pytest.raises(ArgumentError, match=text):
            svi.run(*arguments)
    with pytest.raises(ArgumentError, match="only once"):
        svi.run(iter([DATA]), epochs=2)
    with pytest.raises(SgcError, match="no run yet"):
        _ = svi.result


def test_a_pyro_loss_is_stepped_by_pyro() -> None:
    model, guide = local_switches(DECAYING)
    with pytest.warns(StandInWarning, match="TraceGraph_ELBO, which sgc does not compile"):
        svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), pyro.infer.TraceGraph_ELBO())
    assert len(svi.run(3, DATA).losses) == 3
    with pytest.raises(SgcError, match="not compiled"):
        svi.state_dict()


def test_a_dynamic_program_is_run_by_pyro(uncompiled: None) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z > 0:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)))

    svi = fresh(pyro.optim.Adam({"lr": 0.1}), program=(model, guide), dynamic="eager")
    with pytest.warns(StandInWarning, match="run by eager Pyro"):
        svi.run(20)
    assert pyro.param("q").item() != pytest.approx(0.3)


@pytest.mark.inductor
def test_a_resumed_run_goes_on_to_the_last_bit_when_inductor_compiles() -> None:
    svi = fresh()
    svi.run(4, DATA)
    assert is_compiled(svi)
    state = svi.state_dict()
    losses, expected = svi.run(STEPS, DATA).losses, values()
    pyro.clear_param_store()
    resumed = make_svi(adam).initialize(DATA)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.run(STEPS, DATA).losses, losses)
    same(values(), expected)
