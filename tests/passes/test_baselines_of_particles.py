"""Leave-one-out baselines: what is refused, what eager Pyro makes of them, and training on every backend."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer
from sgc.errors import BaselineError, BaselineWarning, StandInWarning
from tests.programs import Pair, local_switches

X = torch.tensor([0.4, -1.2, 0.9])
OPTION: dict[str, Any] = {"use_leave_one_out": True}
BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.inductor), "torchscript"]
WAYS = [{"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}, {"num_particles": 6}]


def program(options: Any = OPTION) -> Pair:
    return local_switches({"baseline": options})


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "one particle": (OPTION, {}, "there is only one particle"),
    "one vectorised particle": (OPTION, {"vectorize_particles": True}, "there is only one particle"),
    "too many to unroll": (OPTION, {"num_particles": 17}, "needs all 17 particles in one program"),
    "beside an average": (
        {**OPTION, "use_decaying_avg_baseline": True},
        {},
        "cannot be combined with use_decaying",
    ),
    "beside a value": ({**OPTION, "baseline_value": X}, {"num_particles": 2}, "cannot be combined with baseline_value"),
    "beside a network": (
        {**OPTION, "nn_baseline": nn.Linear(3, 3), "nn_baseline_input": X},
        {"num_particles": 2},
        "cannot be combined with nn_baseline",
    ),
    "no bool": ({"use_leave_one_out": 1}, {"num_particles": 2}, "use_leave_one_out is 1, not a bool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_an_error_and_changes_nothing(name: str) -> None:
    options, settings, text = REFUSED[name]
    state = torch.get_rng_state()
    with pytest.raises(BaselineError) as caught:
        sgc.compile(*program(options), backend="eager", **settings)(X)
    error = caught.value
    assert text in error.problem and error.site == "z" and error.remedy
    assert error.source is not None and 'pyro.sample("z"' in error.source.text
    assert not pyro.get_param_store()._params and torch.equal(torch.get_rng_state(), state)


def test_switched_off_it_is_nothing() -> None:
    module = sgc.compile(*program({"use_leave_one_out": False}), backend="eager").initialize(X)
    assert module.graph.baseline("z") is None and module.verify(X) and not module.verify(X).reasons


def test_at_a_pathwise_site_it_has_no_effect() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), infer={"baseline": OPTION})

    with pytest.warns(BaselineWarning, match="the baseline has no effect, because the site is pathwise"):
        sgc.compile(model, guide, backend="eager", num_particles=2)()


class Counting(nn.Module):
    """Keeps, in a buffer, what was drawn; the next run's costs depend on it."""

    def __init__(self, writes_sample: bool) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(()))
        self.writes_sample = writes_sample

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.sigmoid(self.kept)))
        self.kept.add_(z if self.writes_sample else 1.0)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def switch(x: Tensor) -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))), infer={"baseline": OPTION})


def test_particles_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(BaselineError, match="needs independent particles"):
        sgc.compile(Counting(True), switch, backend="eager", num_particles=2)(X)
    sgc.compile(Counting(False), switch, backend="eager", num_particles=2)(X)
    sgc.compile(Counting(True), switch, backend="eager")  # nothing has been asked yet


def gradients_of(module: Any, seed: int) -> tuple[float, list[Tensor]]:
    pyro.set_rng_seed(seed)
    loss = module(X)
    loss.backward()
    leaves = list(module.param_store.parameters())
    gradients = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return float(loss), gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_verify_tells_what_pyro_does_not_have(backend: Any, way: dict[str, Any]) -> None:
    module = sgc.compile(*program(), backend=backend, rng="torch", **way).initialize(X)
    report = module.verify(X)
    assert report and report.loss.within(1e-5)
    assert [row.name for row in report.gradients if row.by_design] == ["q"]
    (reason,) = report.reasons
    assert "'z' has a baseline that Pyro does not know: leave-one-out, the mean of the other" in reason.text


def test_verify_finds_a_wrong_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    from sgc.graph.arithmetic import Arithmetic, Value
    from sgc.passes.baselines.leave_one_out import LeaveOneOutNode

    def twice(self: LeaveOneOutNode, run: Arithmetic) -> Value:
        return run.call(torch.mul, run.value("downstream(z)"), 2.0)

    monkeypatch.setattr(LeaveOneOutNode, "compute", twice)
    module = sgc.compile(*program(), backend="eager", num_particles=3).initialize(X)
    assert not module.verify(X)


@pytest.mark.parametrize("way", WAYS)
def test_the_classes_under_pyros_names_take_it(way: dict[str, Any]) -> None:
    module = sgc.compile(*program(), backend="eager", rng="torch", **way).initialize(X)
    loss, gradients = gradients_of(module, 5)
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager", **way)
    pyro.set_rng_seed(5)
    assert elbo.loss_and_grads(*program(), X) == pytest.approx(loss)
    for leaf, gradient in zip(module.param_store.parameters(), gradients, strict=True):
        assert leaf.grad is not None and torch.allclose(leaf.grad, gradient)


@pytest.mark.parametrize("way", WAYS)
def test_eager_pyro_in_its_place_has_the_same_gradient(way: dict[str, Any]) -> None:
    """Where a program cannot be captured and eager Pyro runs it, the sites have the baselines that they ask for."""
    model, guide = program()
    module = sgc.compile(model, guide, backend="eager", rng="torch", **way).initialize(X)
    loss, gradients = gradients_of(module, 5)

    def branching(x: Tensor) -> None:
        trace = pyro.poutine.trace(model).get_trace(x)
        assert float(trace.nodes["z"]["value"].sum()) >= 0.0, "not a count"
        if float(trace.nodes["z"]["value"].sum()) < 0.0:
            pyro.sample("never", dist.Normal(0.0, 1.0))

    elbo = sgc.infer.TraceGraph_ELBO(dynamic="eager", max_plate_nesting=1, **way)
    pyro.set_rng_seed(5)
    with pytest.warns(StandInWarning, match="run by eager Pyro"):
        value = elbo.loss_and_grads(branching, guide, X)
    assert value == pytest.approx(loss, rel=1e-5)
    for leaf, gradient in zip(module.param_store.parameters(), gradients, strict=True):
        assert leaf.grad is not None and torch.allclose(leaf.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_training(backend: Any, way: dict[str, Any]) -> None:
    """Steps of a compiled SVI go where eager ones go, and the loss falls."""
    trained = []
    for name in ("eager", backend):
        pyro.clear_param_store()
        svi = sgc.SVI(*program(), pyro.optim.Adam({"lr": 0.05}), loss=_loss(name, way))
        pyro.set_rng_seed(2)
        losses = [float(svi.step(X + 3)) for _ in range(40)]
        trained.append({key: value.detach().clone() for key, value in pyro.get_param_store().items()})
        assert sum(losses[-10:]) < sum(losses[:10])
    for key, value in trained[0].items():
        assert torch.allclose(trained[1][key], value, rtol=1e-3, atol=1e-4)


def _loss(backend: Any, way: dict[str, Any]) -> sgc.infer.TraceGraph_ELBO:
    return sgc.infer.TraceGraph_ELBO(backend=backend, rng="torch", **way)


@pytest.mark.parametrize("way", WAYS[::2])
def test_where_a_branch_goes_another_way_eager_pyro_has_the_same_gradient(way: dict[str, Any]) -> None:
    def model(x: Tensor, branches: bool) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        loc = 2 * z - 1
        if branches and z > 0.5:
            loc = loc + 0.0
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[0])

    def guide(x: Tensor, branches: bool) -> None:
        switch(x)

    module = sgc.compile(model, guide, backend="eager", dynamic="speculate", **way)
    plain = sgc.compile(model, guide, backend="eager", rng="torch", **way)
    for seed in range(8):
        results = []
        for compiled, branches in ((module, True), (plain, False)):
            pyro.set_rng_seed(seed)
            loss = compiled(X, branches)
            loss.backward()
            (q,) = compiled.param_store.parameters()
            assert q.grad is not None
            results.append((float(loss), float(q.grad)))
            q.grad = None
        assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-6)


def test_a_specialization_for_each_shape_has_its_own() -> None:
    module = sgc.compile(*program(), backend="eager", num_particles=2, vectorize_particles=True)
    for size in (3, 2):
        module(X[:size]).backward()
        baseline = module.graph.baseline("z")
        assert baseline is not None and baseline.shape == (2, size)
        assert module.verify(X[:size])


def test_the_graph_says_it() -> None:
    module = sgc.compile(*program(), backend="eager", num_particles=3, vectorize_particles=True).initialize(X)
    text = str(module.graph)
    assert "minus the baseline: leave-one-out, the mean of the other 2 particles' costs" in text
    assert "loss: minus elbo, the mean over 3 particles, in the plate num_particles_vectorized" in text
    assert module.graph.edges["downstream(z)", "baseline(z)"]["across"] == "particles"
    assert module.graph.provenance("baseline(z)") == frozenset()


def test_no_average_is_kept() -> None:
    module = sgc.compile(*program(), backend="eager", num_particles=2)
    module(X).backward()
    assert not [name for name in pyro.get_param_store()._params if name.startswith("__")]
    assert not module.specializations[-1].emitted.averages
