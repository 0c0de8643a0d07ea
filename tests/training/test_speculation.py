"""Training on the assumption that branches on samples go one way: the trajectory is that of Pyro's own ``SVI``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from pyro.ops.provenance import detach_provenance
from torch import Tensor

import sgc
from sgc.emit.inductor.cpp_entry import NativeCall
from sgc.errors import NanLossError, StandInWarning

X = torch.tensor([0.4, 1.3])
STEPS = 30


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StandInWarning)
        yield


def model(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.2))
    matrix = torch.eye(2) * (1 - z) * rate
    if torch.linalg.det(matrix) == 0:
        matrix = matrix + torch.eye(2) * pyro.param("mend", torch.tensor(1.0), constraint=constraints.positive)
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(matrix)), obs=x)


def guide(x: Tensor) -> None:
    # How many random numbers a gamma takes depends on its shape, which is trained.
    shape = pyro.param("shape", torch.tensor(0.8), constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, 1.0))
    q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
    pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


Taking = Callable[[Any], list[float]]


def trained(svi_of: type[pyro.infer.SVI], elbo: Any, take: Taking, optim: Any = None) -> Any:
    """Losses, the store and the random state after a training from the same start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    svi = svi_of(model, guide, optim or pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = take(svi)
    store = {name: t.detach().clone() for name, t in pyro.get_param_store()._params.items()}
    return losses, store, torch.get_rng_state(), svi


def by_steps(svi: Any) -> list[float]:
    return [svi.step(X) for _ in range(STEPS)]


def by_runs(svi: Any) -> list[float]:
    return [float(loss) for part in (11, STEPS - 11) for loss in svi.run(part, X).losses]


def over_batches(svi: Any) -> list[float]:
    return svi.run([(X,)] * STEPS).losses.tolist()  # type: ignore[no-any-return]


def compare(ours: Any, theirs: Any) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4, abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        torch.testing.assert_close(ours[1][name], value, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours[2], theirs[2])


def rarely(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 1.0:
        z = z + pyro.sample("shift", dist.Bernoulli(0.4))
    pyro.sample("x", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=x)


def rarely_guide(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    if z > 1.0:
        q = pyro.param("q", torch.tensor(0.3), constraint=constraints.unit_interval)
        pyro.sample("shift", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


@pytest.mark.parametrize("take", [by_steps, by_runs])
def test_the_average_of_a_branch_that_was_not_captured_goes_on(take: Taking) -> None:
    def run(svi_of: type[pyro.infer.SVI], elbo: Any, take: Taking) -> tuple[Any, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        svi = svi_of(rarely, rarely_guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        losses = take(svi)
        store = {name: detach_provenance(t).detach() for name, t in pyro.get_param_store()._params.items()}
        return (losses, {name: t.clone() for name, t in store.items()}, torch.get_rng_state()), svi

    theirs, _ = run(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO(), by_steps)
    ours, svi = run(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="eager", dynamic="speculate"), take)
    compare(ours, theirs)
    (made,) = svi.loss_module.specializations
    assert made.tally.failures.total() > 3
    assert not made.baselines.nodes
    state, before = svi.state_dict(), svi.loss_module.baselines.shift.clone()
    losses = svi.run(STEPS, X).losses
    assert svi.loss_module.baselines.shift != before
    svi.load_state_dict(state)
    assert svi.loss_module.baselines.shift == before
    assert torch.equal(svi.run(STEPS, X).losses, losses)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("take", [by_steps, by_runs, over_batches])
def test_the_trajectory_is_pyros(backend: Any, take: Taking) -> None:
    theirs = trained(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO(), by_steps)
    ours = trained(sgc.SVI, sgc.infer.TraceGraph_ELBO(backend=backend, dynamic="speculate"), take)
    compare(ours, theirs)
    tallies = [made.tally for made in ours[3].loss_module.specializations]
    assert sum(tally.calls for tally in tallies) == STEPS
    assert "mend" in ours[1]  # a parameter that only the other branch has
    assert 3 < sum(tally.failures.total() for tally in tallies) < STEPS - 3


def test_pyros_own_svi_moves_the_parameters_of_the_branch_that_was_taken() -> None:
    theirs = trained(pyro.infer.SVI, pyro.infer.TraceGraph_ELBO(), by_steps)
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager", dynamic="speculate")
    compare(trained(pyro.infer.SVI, elbo, by_steps), theirs)
    (compiled,) = elbo._compiled
    assert sum(made.tally.failures.total() for made in compiled.specializations if made.tally is not None) > 3


def test_a_branch_that_never_goes_the_other_way_costs_one_specialization() -> None:
    def mended(x: Tensor) -> None:
        weights = pyro.sample("rate", dist.Gamma(2.0, 1.0)).expand(3)
        if torch.sum(weights) == 0:
            weights = weights + 1e-6
        pyro.sample("x", dist.Dirichlet(weights), obs=torch.tensor([0.2, 0.3, 0.5]))

    def own_guide(x: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(0.8), constraint=constraints.positive)
        pyro.sample("rate", dist.Gamma(shape, 1.0))

    losses = []
    for svi_of, elbo in (
        (pyro.infer.SVI, pyro.infer.TraceGraph_ELBO()),
        (sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="eager", dynamic="speculate")),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = svi_of(mended, own_guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        losses.append([svi.step(X) for _ in range(12)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    (made,) = svi.loss_module.specializations  # type: ignore[attr-defined]
    assert made.tally.calls == 12
    assert not made.tally.failures


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_nan_in_the_other_branch_halts_as_any_nan_does(backend: Any) -> None:
    def vanishing(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.2))
        loc = pyro.param("loc", torch.zeros(2))
        if z:
            loc = loc * math.nan
        pyro.factor("evidence", (loc - x).square().sum().neg())

    def own_guide(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.2), constraint=constraints.unit_interval)))

    pyro.clear_param_store()
    pyro.set_rng_seed(4)
    elbo = sgc.infer.TraceGraph_ELBO(backend=backend, dynamic="speculate", validate=False)
    svi = sgc.SVI(vanishing, own_guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    svi.run(1, X)
    with pytest.raises(NanLossError, match="goes another way than assumed\n.*if z:"):
        svi.run(100, X)
    taken = len(svi.result.losses)
    assert taken > 0
    before = {name: t.detach().clone() for name, t in pyro.get_param_store()._params.items()}
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(svi.step(X))
    for name, value in before.items():
        assert torch.equal(pyro.get_param_store()._params[name], value)
    assert not math.isnan(svi.step(X)) or not math.isnan(svi.step(X)) or not math.isnan(svi.step(X))


def test_an_error_of_the_other_branch_ends_a_run_before_that_step() -> None:
    def failing(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.2))
        loc = pyro.param("loc", torch.zeros(2))
        if z:
            raise ZeroDivisionError("mine")
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def own_guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.2), constraint=constraints.unit_interval)
        pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})

    def after(svi: Any, take: Taking) -> tuple[int, dict[str, Tensor], Tensor]:
        losses: list[float] = []
        with pytest.raises(ZeroDivisionError):
            losses.extend(take(svi))
        store = {name: t.detach().clone() for name, t in pyro.get_param_store()._params.items()}
        return len(losses), store, torch.get_rng_state()

    pyro.set_rng_seed(4)
    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", dynamic="speculate")
    svi = sgc.SVI(failing, own_guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    svi.step(X)
    first = after(svi, lambda svi: svi.run(100, X).losses.tolist())
    taken = len(svi.result.losses)
    assert taken > 0
    again = after(svi, lambda svi: [svi.step(X)])  # the random state is the one before the failed step
    assert first[1].keys() == again[1].keys()
    assert all(torch.equal(again[1][name], value) for name, value in first[1].items())
    assert torch.equal(first[2], again[2])
    torch.rand(10)
    assert math.isfinite(svi.run(1, X).losses[0])


def test_an_optimizer_of_torchs_and_particles_one_after_another() -> None:
    def make(cls: Any, **options: Any) -> Any:
        return cls(num_particles=2, **options)

    theirs = trained(pyro.infer.SVI, make(pyro.infer.TraceGraph_ELBO), by_steps)
    ours = trained(
        sgc.SVI,
        make(sgc.infer.TraceGraph_ELBO, backend="eager", dynamic="speculate"),
        by_runs,
        lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )
    compare(ours, theirs)


def test_a_step_that_raises_in_the_middle_of_a_run_is_pyros(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.1))
        index = (5 * z).long().reshape(1)
        if z:
            index = index - 4
        table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        pyro.sample("x", dist.Normal(table[index][0], 1.0).to_event(1), obs=x)

    def own_guide(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.1), constraint=constraints.unit_interval)))

    raised: list[int] = []
    until_halted = NativeCall.until_halted

    def noted(self: NativeCall, tensors: Any, times: int, note_state: Any) -> Any:
        results, before = until_halted(self, tensors, times, note_state)
        if len(results[0]) < times and not results[0].isnan().any():
            raised.append(len(results[0]))
        return results, before

    monkeypatch.setattr(NativeCall, "until_halted", noted)
    outcomes = []
    for svi_of, elbo in (
        (pyro.infer.SVI, pyro.infer.TraceGraph_ELBO()),
        (sgc.SVI, sgc.infer.TraceGraph_ELBO(backend="inductor", dynamic="speculate", validate=False)),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        svi = svi_of(raising, own_guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        losses = [svi.step(X) for _ in range(60)] if svi_of is pyro.infer.SVI else svi.run(60, X).losses.tolist()  # type: ignore[attr-defined]
        store = {name: t.detach().clone() for name, t in pyro.get_param_store()._params.items()}
        outcomes.append((losses, store, torch.get_rng_state()))
    compare(*reversed(outcomes))
    assert raised  # there were steps before it in the same stretch
    assert sum(each.tally.failures.total() for each in svi.loss_module.specializations) > 2  # type: ignore[attr-defined]
