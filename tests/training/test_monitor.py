"""A monitored run: what is recorded, and that the training is what it would have been."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import ArgumentError, SgcError, StandInWarning
from sgc.training.callbacks.monitored import Monitored, Record
from tests.programs import local_switches
from tests.training.programs import DATA, DECAYING, GAUSSIAN, adam, fresh, make_svi, values

ALL = {"variance_samples": 4}


def normalising() -> Any:
    """Batch norm's buffers, a learned baseline, minibatches of a plate, a decaying average."""
    norm, network = nn.BatchNorm1d(2), nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("norm", norm)
        with pyro.plate("rows", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(norm(x[rows]) + z[:, None], 1.0).to_event(1), obs=x[rows])

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        learned = {
            "baseline": {
                "nn_baseline": lambda y: network(y).squeeze(-1),
                "nn_baseline_input": x[:2, :1],
                "use_decaying_avg_baseline": True,
            }
        }
        with pyro.plate("rows", len(x), subsample_size=2):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))), infer=learned)

    return model, guide


PROGRAMS: dict[str, tuple[Callable[[], Any], Tensor]] = {
    "a decaying average": (lambda: local_switches(DECAYING), DATA),
    "buffers, a network, a subsample": (normalising, torch.arange(12.0).reshape(6, 2)),
    "pathwise": (lambda: GAUSSIAN, DATA),
}


def everything(svi: sgc.SVI) -> dict[str, Tensor]:
    """All that a run changes, the random state among it."""
    return {**svi.loss_module.state_dict(), **values(), "random": torch.get_rng_state()}


@pytest.mark.parametrize(
    ("program", "how", "particles"),
    [
        ("a decaying average", "steps", 1),
        ("a decaying average", "minibatches", 5),
        ("a decaying average", "eager", 2),
        ("buffers, a network, a subsample", "steps", 5),
        ("buffers, a network, a subsample", "minibatches", 1),
        ("buffers, a network, a subsample", "eager", 5),
        ("pathwise", "steps", 1),
    ],
)
def test_a_monitored_run_is_the_run_that_it_would_have_been(
    program: str, how: str, particles: int, uncompiled: None
) -> None:
    make, data = PROGRAMS[program]

    def run(**options: Any) -> tuple[sgc.training.losses.RunResult, dict[str, Tensor]]:
        torch.manual_seed(3)
        pair = make()
        backend = "eager" if how == "eager" else "inductor"
        svi = fresh(program=pair, backend=backend, num_particles=particles)
        result = svi.run([data] * 4, epochs=3, **options) if how == "minibatches" else svi.run(12, data, **options)
        return result, everything(svi)

    plain, expected = run()
    watched, after = run(monitor=sgc.Monitor(5, **ALL))
    assert torch.equal(watched.losses, plain.losses)
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert plain.monitored is None
    assert watched.monitored is not None and watched.monitored.steps.tolist() == [5, 10]
    assert watched.monitored.gradient_norm.isfinite().all() and watched.monitored.variance.isfinite().all()


@pytest.mark.inductor
def test_so_it_is_where_inductor_compiles() -> None:
    def run(**options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = sgc.SVI(*local_switches(DECAYING), adam, wait=True)
        losses = svi.run(60, DATA, **options).losses
        assert svi.stepper.compiled.built == 1
        return losses, everything(svi)

    (losses, expected), (watched, after) = run(), run(monitor=7)
    assert torch.equal(losses, watched)
    assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_the_steps_between_are_taken_many_in_one_call(uncompiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    svi = fresh()
    svi.run(3, DATA)
    asked: list[int] = []
    take = type(svi.stepper).ready

    def counting(self: Any, call: Any) -> Any:
        asked.append(1)
        return take(self, call)

    monkeypatch.setattr(type(svi.stepper), "ready", counting)
    built = svi.stepper.compiled.built
    svi.run(90, DATA, monitor=sgc.Monitor(30, gradient_norm=False))
    # A stretch is at first one step, then about a tenth of a second: two for each record, and some slack.
    assert len(asked) <= 15
    assert svi.stepper.compiled.built == built


def test_the_recorded_gradient_is_that_of_the_next_step(uncompiled: None) -> None:
    """By SGD at rate 1, whose step is the gradient."""
    svi = fresh(lambda parameters: torch.optim.SGD(parameters, lr=1.0), program=GAUSSIAN)
    svi.initialize(DATA)
    result = svi.run(2, DATA, monitor=1)
    assert result.monitored is not None
    state = svi.loss_module.state_dict()
    before = values()["mean"]
    random = torch.get_rng_state()
    svi.step(DATA)
    moved = values()["mean"] - before
    svi.loss_module.load_state_dict(state)
    assert result.monitored.gradient_norms["mean"][-1].item() == pytest.approx(moved.abs().item(), rel=1e-5)
    assert result.monitored.gradient_norm.tolist() == result.monitored.gradient_norms["mean"].tolist()
    assert not torch.equal(torch.get_rng_state(), random)


def test_the_elbo_is_the_mean_since_the_record_before(uncompiled: None) -> None:
    result = fresh().run(10, DATA, monitor=4)
    assert result.monitored is not None
    expected = [-result.losses[:4].double().mean(), -result.losses[4:8].double().mean()]
    assert result.monitored.elbo.tolist() == pytest.approx([value.item() for value in expected])


def test_the_variance_is_that_of_gradient_variance(uncompiled: None) -> None:
    svi = fresh()
    result = svi.run(6, DATA, monitor=sgc.Monitor(3, variance_samples=20, gradient_norm=False))
    report = svi.loss_module.gradient_variance(DATA, samples=20)
    monitored = result.monitored
    assert monitored is not None
    assert monitored.variance[-1].item() == report.total
    assert {name: share[-1].item() for name, share in monitored.shares.items()} == {
        row.site: report.share(row.site) for row in report.sites
    }
    assert "gradient_norm" not in monitored.columns() and "variance" in monitored.columns()


def test_a_parameter_that_comes_later_is_nan_before(uncompiled: None) -> None:
    def model(flag: bool) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * (pyro.param("late", torch.tensor(1.0)) if flag else 1.0), 1.0), obs=DATA[0])

    def guide(flag: bool) -> None:
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))

    result = fresh(program=(model, guide)).run([False, False, True, True], monitor=1)
    assert result.monitored is not None
    norms = result.monitored.gradient_norms
    assert norms["late"].isnan().tolist() == [True, True, False, False]
    assert not norms["mean"].isnan().any()


# -- where no gradient can be had


def choosing(infer: dict[str, Any] | None = None) -> Any:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z > 0:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))), infer=infer or {})

    return model, guide


def test_a_program_that_pyro_runs_has_an_elbo_and_a_warning(uncompiled: None) -> None:
    def run(**options: Any) -> tuple[Any, dict[str, Tensor]]:
        svi = fresh(pyro.optim.Adam({"lr": 0.1}), program=choosing(), dynamic="eager")
        with pytest.warns(StandInWarning) as warned:
            result = svi.run(6, **options)
        return (result, warned), values()

    (plain, _), expected = run()
    (watched, warned), after = run(monitor=2)
    assert torch.equal(plain.losses, watched.losses) and after == expected
    told = [str(warning.message) for warning in warned if "not recorded" in str(warning.message)]
    assert told == [
        "gradients of some steps are not recorded: this call is made by eager Pyro, or would be compiled anew"
    ]
    monitored = watched.monitored
    assert monitored.elbo.isfinite().all() and monitored.gradient_norm.isnan().all()
    assert list(monitored.columns()) == ["step", "elbo"]


def both_ways() -> Any:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z > 0:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))
        else:
            pyro.sample("y", dist.Normal(1.0, 2.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(1.5))), infer=DECAYING)

    return model, guide


def test_where_a_branch_on_a_sample_goes_another_way_a_record_has_no_gradient(uncompiled: None) -> None:
    def run(**options: Any) -> tuple[Any, dict[str, Tensor]]:
        svi = fresh(program=both_ways(), dynamic="speculate")
        return svi.run(40, **options), everything(svi)

    plain, expected = run()
    with pytest.warns(StandInWarning, match="not recorded: a branch on a sample goes another way"):
        watched, after = run(monitor=1)
    assert torch.equal(plain.losses, watched.losses)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    norms = watched.monitored.gradient_norm
    assert norms.isnan().any() and norms.isfinite().any()


def test_minibatches_of_several_sizes_are_monitored(uncompiled: None) -> None:
    ragged = [torch.linspace(-1.0, 1.0, size) for size in (3, 4, 5, 3, 6)]

    def run(**options: Any) -> tuple[Any, dict[str, Tensor]]:
        svi = fresh()
        return svi.run(ragged, epochs=2, **options), everything(svi)

    (plain, expected), (watched, after) = run(), run(monitor=sgc.Monitor(1, **ALL))
    assert torch.equal(plain.losses, watched.losses)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert watched.monitored.gradient_norm.isfinite().all()


def test_a_loss_that_is_not_compiled_is_refused_before_the_first_step() -> None:
    with pytest.warns(StandInWarning):
        svi = sgc.SVI(*local_switches(), pyro.optim.Adam({"lr": 0.1}), pyro.infer.TraceGraph_ELBO())
    with pytest.raises(SgcError, match="the loss of this SVI is not compiled"):
        svi.run(3, DATA, monitor=1)
    assert len(svi.result.losses) == 0
    result = svi.run(4, DATA, monitor=sgc.Monitor(2, gradient_norm=False))
    assert result.monitored is not None and len(result.monitored) == 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: sgc.Monitor(0), "every is a number of steps, 1 or more, not 0"),
        (lambda: sgc.Monitor(True), "every is a number of steps, 1 or more, not True"),
        (lambda: sgc.Monitor(2.5), "every is a number of steps, 1 or more, not 2.5"),  # type: ignore[arg-type]
        (lambda: sgc.Monitor(variance_samples=1), "at least 2 samples, not 1"),
        (lambda: fresh().run(2, DATA, monitor="all"), "a number of steps or an sgc.Monitor, not a str"),  # type: ignore[arg-type]
        (lambda: fresh().run(2, DATA, monitor=0), "every is a number of steps, 1 or more, not 0"),
        (lambda: fresh().run(2, DATA, monitor=True), "a number of steps or an sgc.Monitor, not a bool"),
    ],
)
def test_wrong_requests_are_told(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        make()


# -- what is shown


def recorded(count: int) -> Monitored:
    return Monitored(
        tuple(
            Record(10 * n, -1.5 * n, {"a": 3.0, "b": 4.0}, 2.0, {"z": 0.75, "y": 0.25, "x": 0.0, "w": 0.0})
            for n in range(1, count + 1)
        )
    )


def test_it_prints_a_table_of_rows_spread_over_the_run() -> None:
    text = str(recorded(3)).splitlines()
    assert text[0] == "monitored"
    assert text[1].split("  ")[-1] == "share of x" and "w" not in text[1].split()
    assert text[-1].split() == ["30", "-4.5", "5", "2", "75.0%", "25.0%", "0.0%"]
    long = str(recorded(100)).splitlines()
    assert len(long) == 22 and long[-1].split()[0] == "1000"


def test_it_is_columns_html_and_curves() -> None:
    monitored = recorded(3)
    columns = monitored.columns()
    assert list(columns)[:5] == ["step", "elbo", "gradient_norm", "gradient_norm/a", "gradient_norm/b"]
    assert columns["gradient_norm"].tolist() == [5.0] * 3 and columns["step"].dtype is torch.int64
    assert monitored._repr_mimebundle_()["text/html"].count("<tr>") == 4
    pytest.importorskip("matplotlib").use("agg")
    axes = monitored.plot()
    assert [axis.get_ylabel() for axis in axes] == ["ELBO, nats", "gradient norm", "variance"]
    assert axes[0].get_lines()[0].get_ydata().tolist() == columns["elbo"].tolist()


def test_a_run_without_records_is_shown_too(uncompiled: None) -> None:
    result = fresh().run(3, DATA, monitor=10)
    assert result.monitored is not None and len(result.monitored) == 0
    assert str(result.monitored).startswith("monitored")
    assert "<table" in result._repr_mimebundle_()["text/html"]
    assert math.isnan(result.monitored.elbo.mean().item())


def test_another_run_is_recorded_anew(uncompiled: None) -> None:
    svi, monitor = make_svi(adam), sgc.Monitor(2, gradient_norm=False)
    first = svi.run(4, DATA, monitor=monitor)
    second = svi.run(2, DATA, monitor=monitor)
    assert first.monitored is not None and first.monitored.steps.tolist() == [2, 4]
    assert second.monitored is not None and second.monitored.steps.tolist() == [2]
