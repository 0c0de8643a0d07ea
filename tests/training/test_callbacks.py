"""Callbacks: when they are called, what they are given, and that nothing is lost however a run ends."""

from __future__ import annotations

import gc
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor

import sgc
from sgc.errors import ArgumentError, NanLossError
from tests.training.programs import DATA, GAUSSIAN, NAN, ONE, SCALED, adam, fresh, make_svi, values


def quick() -> sgc.SVI:
    """An SVI whose steps are taken in Python: for what is no matter of compiled steps."""
    return fresh(program=GAUSSIAN, backend="eager")


class Noting(sgc.Callback):
    """Notes what is called, at which step."""

    def __init__(self, every: int | None = 1) -> None:
        self.every = every
        self.calls: list[tuple[str, int]] = []
        self.error: BaseException | None = None

    def on_train_begin(self, run: sgc.TrainingRun) -> None:
        self.calls.append(("begin", run.step))

    def on_step_end(self, run: sgc.TrainingRun) -> None:
        self.calls.append(("step", run.step))

    def on_epoch_end(self, run: sgc.TrainingRun) -> None:
        self.calls.append(("epoch", run.step))

    def on_train_end(self, run: sgc.TrainingRun) -> None:
        self.calls.append(("end", run.step))
        self.error = run.error


@pytest.mark.parametrize("backend", ["inductor", "eager"])
def test_the_order_of_calls(backend: str, uncompiled: None) -> None:
    noting = Noting(every=2)
    result = fresh(backend=backend).run([DATA] * 3, epochs=2, callbacks=[noting])
    assert noting.calls == [
        *[("begin", 0), ("step", 2), ("epoch", 3), ("step", 4), ("step", 6), ("epoch", 6), ("end", 6)],
    ]
    assert noting.error is None
    assert result.epoch_ends == (3, 6)


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (10, []), (None, [])])
def test_steps_are_counted_as_every_says(every: int | None, steps: list[int], uncompiled: None) -> None:
    noting = Noting(every)
    fresh().run(7, DATA, callbacks=[noting])
    assert [step for what, step in noting.calls if what == "step"] == steps
    assert not [what for what, _ in noting.calls if what == "epoch"]


def test_callbacks_do_not_change_the_training(uncompiled: None) -> None:
    expected, parameters = fresh().run(20, DATA).losses, values()
    found = fresh().run(20, DATA, callbacks=[Noting(3), Noting(7), lambda run: run.result]).losses
    assert torch.equal(found, expected)
    assert all(torch.equal(values()[name], parameter) for name, parameter in parameters.items())


def test_a_run_tells_how_far_it_is(uncompiled: None) -> None:
    seen: list[Any] = []

    def look(run: sgc.TrainingRun) -> None:
        assert run.call is not None
        seen.append((run.step, run.total, run.epoch, run.call.args, run.epoch_loss(), run.mean_loss(2)))

    svi = fresh(program=SCALED)
    result = svi.run([ONE, ONE, ONE], epochs=2, callbacks=[look])
    assert [entry[:3] for entry in seen] == [(1, 6, 1), (2, 6, 1), (3, 6, 1), (4, 6, 2), (5, 6, 2), (6, 6, 2)]
    assert all(args == (ONE,) for *_, args, _, _ in seen)
    assert seen[4][4] == pytest.approx(result.losses[3:5].mean().item())
    assert seen[4][5] == pytest.approx(result.losses[3:5].mean().item())
    assert seen[0][5] == pytest.approx(result.losses[0].item())


def test_a_callback_may_take_steps_evaluate_and_save(uncompiled: None) -> None:
    states: list[Any] = []

    class Saving(sgc.Callback):
        every = 4

        def on_step_end(self, run: sgc.TrainingRun) -> None:
            run.svi.evaluate_loss(DATA)
            states.append(run.svi.state_dict())

    svi = fresh()
    svi.run(8, DATA, callbacks=[Saving()])
    expected = svi.run(3, DATA).losses
    svi.load_state_dict(states[-1])
    assert torch.equal(svi.run(3, DATA).losses, expected)


def test_the_result_is_that_of_the_run_that_is_over(uncompiled: None) -> None:
    def within(run: sgc.TrainingRun) -> None:
        if run.step == 2:
            run.svi.run(1, DATA)

    svi = fresh()
    assert len(svi.run(5, DATA, callbacks=[within]).losses) == 5


# -- stopping


@pytest.mark.parametrize("minibatches", [True, False])
def test_a_callback_stops_the_run(minibatches: bool, uncompiled: None) -> None:
    def stop(run: sgc.TrainingRun) -> None:
        if run.step == 4:
            run.stop("enough")

    noting = Noting()
    svi = fresh()
    watching = [stop, noting]
    result = svi.run([DATA] * 3, epochs=3, callbacks=watching) if minibatches else svi.run(9, DATA, callbacks=watching)
    assert len(result.losses) == 4 and result.stopped == "enough"
    assert noting.calls[-2:] == [("step", 4), ("end", 4)] and noting.error is None
    assert str(result).endswith("stopped: enough") and "enough" in result._repr_mimebundle_()["text/html"]
    assert svi.run(2, DATA).stopped is None


def test_a_run_is_stopped_at_the_end_of_an_epoch(uncompiled: None) -> None:
    class Stopping(sgc.Callback):
        def on_epoch_end(self, run: sgc.TrainingRun) -> None:
            if run.epoch == 2:
                run.stop()

    opened: list[int] = []

    class Batches:
        def __iter__(self) -> Iterator[Tensor]:
            opened.append(1)
            return iter([DATA] * 2)

    result = fresh().run(Batches(), epochs=5, callbacks=[Stopping()])
    assert result.epoch_ends == (2, 4) and len(opened) == 2 and result.stopped is not None


# -- early stopping


class Flat:
    """A loss that falls to 0 in steps of 1 and stays: the value of a factor that SGD lowers."""

    @staticmethod
    def program() -> Any:
        def model() -> None:
            level = pyro.param("level", torch.tensor(5.0))
            pyro.factor("cost", -torch.relu(level))

        return model, lambda: None


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def test_a_run_of_steps_stops_once_nothing_falls(uncompiled: None) -> None:
    stopping = sgc.EarlyStopping(patience=3, every=2)
    result = fresh(sgd, program=Flat.program()).run(1000, callbacks=[stopping])
    # The losses are 5 4 3 2 1 0 0 ...: their means 4.5, 2.5, 0.5, 0, 0, 0, 0.
    assert len(result.losses) == 14
    assert stopping.best == 0.0 and stopping.best_step == 8
    assert result.stopped == "no improvement on 0, of step 8"


def test_it_looks_at_epochs_where_there_are_some(uncompiled: None) -> None:
    stopping = sgc.EarlyStopping(patience=2)
    result = fresh(sgd, program=Flat.program()).run([()] * 3, epochs=50, callbacks=[stopping])
    # Means of three: 4, 1, 0, 0, 0.
    assert len(result.epoch_ends) == 5 and result.epoch_losses.tolist() == [4.0, 1.0, 0.0, 0.0, 0.0]
    assert stopping.best_step == 9


def test_an_improvement_must_be_larger_than_min_delta(uncompiled: None) -> None:
    stopping = sgc.EarlyStopping(patience=1, every=1, min_delta=1.5)
    result = fresh(sgd, program=Flat.program()).run(100, callbacks=[stopping])
    assert len(result.losses) == 2 and stopping.best == 5.0


def test_it_looks_at_what_it_is_told_to(uncompiled: None) -> None:
    looked: list[int] = []
    falling = [3.0, 1.0, float("nan"), 2.0, 0.5, 0.4]

    def metric(run: sgc.TrainingRun) -> float:
        looked.append(run.step)
        return falling[len(looked) - 1]

    stopping = sgc.EarlyStopping(patience=2, every=5, metric=metric)
    result = fresh().run(1000, DATA, callbacks=[stopping])
    assert looked == [5, 10, 15, 20] and len(result.losses) == 20 and stopping.best == 1.0


def rising(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0, maximize=True)


@pytest.mark.parametrize("stopped", [True, False])
def test_the_best_parameters_are_put_back(stopped: bool, uncompiled: None) -> None:
    stopping = sgc.EarlyStopping(patience=3 if stopped else 50, every=1, restore_best=True)
    svi = fresh(rising, program=Flat.program())
    result = svi.run(10, callbacks=[stopping])
    assert (result.stopped is not None) is stopped
    # The first look is after the first step, at 6.
    assert stopping.best_step == 1 and pyro.param("level").item() == 6.0
    svi.run(1)
    assert pyro.param("level").item() == 7.0


def test_a_parameter_that_came_after_the_best_look_stays(uncompiled: None) -> None:
    def model(flag: bool) -> None:
        level = pyro.param("level", torch.tensor(5.0))
        pyro.factor("cost", -level - (pyro.param("late", torch.tensor(2.0)) if flag else 0.0))

    svi = fresh(rising, program=(model, lambda flag: None))
    svi.run([False, True, True], callbacks=[sgc.EarlyStopping(every=1, restore_best=True)])
    assert pyro.param("level").item() == 6.0 and pyro.param("late").item() == 4.0


def test_a_run_that_is_stopped_before_it_begins_takes_no_step(uncompiled: None) -> None:
    class Stopping(sgc.Callback):
        def on_train_begin(self, run: sgc.TrainingRun) -> None:
            run.stop("not today")

    result = fresh().run([DATA] * 3, callbacks=[Stopping()])
    assert len(result.losses) == 0 and result.stopped == "not today"


def test_a_run_that_is_over_keeps_no_minibatch_alive() -> None:
    made: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        batch = torch.zeros(3)
        made.append(weakref.ref(batch))
        yield batch

    svi = quick()
    svi.run([DATA] * 3)  # a capture keeps what it was made of
    svi.run(batches(), callbacks=[lambda run: None])
    gc.collect()
    assert made[0]() is None and len(svi.result.losses) == 1


def test_after_an_error_parameters_stay_and_the_best_are_there(uncompiled: None) -> None:
    def fail(run: sgc.TrainingRun) -> None:
        if run.step == 4:
            raise ValueError("no more")

    stopping = sgc.EarlyStopping(every=1, restore_best=True)
    svi = fresh(rising, program=Flat.program())
    with pytest.raises(ValueError, match="no more"):
        svi.run(10, callbacks=[stopping, fail])
    assert pyro.param("level").item() == 9.0
    assert stopping.best_values is not None
    svi.loss_module.load_state_dict(stopping.best_values)
    assert pyro.param("level").item() == 6.0


# -- nothing is lost


@pytest.mark.parametrize("name", ["on_train_begin", "on_step_end", "on_epoch_end", "on_train_end"])
def test_an_error_in_a_callback_says_where_and_loses_nothing(name: str) -> None:
    def fail(self: Any, run: sgc.TrainingRun) -> None:
        raise ValueError("of the callback")

    failing = type("Failing", (sgc.Callback,), {name: fail, "every": 2})()
    noting = Noting()
    svi = quick()
    with pytest.raises(ValueError, match="of the callback") as caught:
        svi.run([DATA] * 3, callbacks=[failing, noting])
    steps = {"on_train_begin": 0, "on_step_end": 2, "on_epoch_end": 3, "on_train_end": 3}[name]
    assert len(svi.result.losses) == steps
    assert caught.value.__notes__ == [
        f"raised in {name} of Failing, after step {steps} of the run; svi.result has the losses until then"
    ]
    assert noting.calls[-1] == ("end", steps)
    assert noting.error is (None if name == "on_train_end" else caught.value)
    assert len(svi.run(2, DATA).losses) == 2


def test_every_callback_is_told_of_the_end() -> None:
    class Failing(sgc.Callback):
        def on_train_end(self, run: sgc.TrainingRun) -> None:
            raise ValueError("one")

    first, last = Noting(), Noting()
    with pytest.raises(ValueError, match="one"):
        quick().run(1, DATA, callbacks=[first, Failing(), last])
    assert first.calls[-1] == last.calls[-1] == ("end", 1)


@pytest.mark.cpu
def test_nan_ends_the_run_and_is_told(uncompiled: None) -> None:
    noting, monitor = Noting(), sgc.Monitor(1)
    svi = fresh(program=SCALED, validate=False)
    with pytest.raises(NanLossError, match="step 4"):
        svi.run([ONE, ONE, ONE, NAN, ONE], monitor=monitor, callbacks=[noting])
    assert noting.calls[-1] == ("end", 3) and isinstance(noting.error, NanLossError)
    assert svi.result.monitored is not None and svi.result.monitored.steps.tolist() == [1, 2, 3]


def test_ctrl_c_ends_the_run_and_is_told(uncompiled: None, interruptible: None) -> None:
    def press(run: sgc.TrainingRun) -> None:
        if run.step == 3:
            signal.raise_signal(signal.SIGINT)

    noting = Noting()
    svi = fresh()
    with pytest.raises(KeyboardInterrupt):
        svi.run(10, DATA, callbacks=[press, noting])
    assert len(svi.result.losses) == 3
    assert noting.calls[-2:] == [("step", 3), ("end", 3)] and isinstance(noting.error, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("callbacks", "text"),
    [
        (["log"], "a function or an sgc.Callback, not a str"),
        ([sgc.EarlyStopping], r"not the class EarlyStopping\n  remedy: make one: EarlyStopping\(\)"),
        ([int], "not the class int"),
        (print, "callbacks are a list, not a builtin_function_or_method"),
        ([Noting(0)], "every is a number of steps, 1 or more, not 0"),
    ],
)
def test_what_is_no_callback_is_refused_before_the_first_step(callbacks: Any, text: str) -> None:
    svi = quick()
    with pytest.raises(ArgumentError, match=text):
        svi.run(3, DATA, callbacks=callbacks)
    assert not svi.loss_module.specializations


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1.0}, {"every": 0}, {"min_delta": float("nan")}])
def test_early_stopping_refuses_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        sgc.EarlyStopping(**options)


# -- losses of epochs, and per datum


def test_losses_of_epochs_and_per_datum(uncompiled: None) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    svi = fresh(program=(model, lambda x: None))
    result = svi.run([torch.arange(8.0)] * 3, epochs=2)
    assert result.data_size == 8
    assert torch.equal(result.losses_per_datum, result.losses / 8)
    assert torch.equal(result.epoch_losses, result.losses.reshape(2, 3).mean(1))
    svi.run([torch.arange(6.0)])
    assert svi.result.data_size is None


def test_where_nobody_says_how_many_data_there_are(uncompiled: None) -> None:
    result = make_svi(adam, program=GAUSSIAN).run(3, DATA)
    assert result.epoch_losses.shape == (0,) and result.data_size is None
    with pytest.raises(sgc.errors.SgcError, match="by no subsampling plate"):
        _ = result.losses_per_datum


def test_an_epoch_that_is_not_over_has_no_loss(uncompiled: None) -> None:
    def batches() -> Iterator[Tensor]:
        yield DATA
        raise OSError("the disk is gone")

    svi = fresh()
    with pytest.raises(OSError, match="gone"):
        svi.run(batches())
    assert len(svi.result.losses) == 1 and svi.result.epoch_losses.shape == (0,)
