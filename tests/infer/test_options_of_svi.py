"""The options of an ``sgc.SVI`` that makes its loss, its optimizer, how it shows itself, and its pickles."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import ArgumentError, OptimizerError, SgcError, StandInWarning

DATA = torch.tensor([0.2, 1.4, -0.3, 2.2])


def model(data: Tensor) -> None:
    with pyro.plate("rows", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=data)


def guide(data: Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(len(data)))
    with pyro.plate("rows", len(data)):
        pyro.sample("z", dist.Bernoulli(logits=logits))


class Program(nn.Module):
    """Registers itself, with a network that has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))

    def model(self, data: Tensor) -> None:
        pyro.module("program", self)
        model(data)

    def guide(self, data: Tensor) -> None:
        pyro.module("program", self)
        with pyro.plate("rows", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=self.network(data.unsqueeze(-1)).squeeze(-1)))


def adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


# -- options


def test_options_are_those_of_the_loss_that_is_made() -> None:
    svi = sgc.SVI(model, guide, adam, num_particles=2, estimators={"z": "leave-one-out"}, backend="eager")
    svi.step(DATA)
    assert svi.loss_module.graph.particles.count == 2
    baseline = svi.loss_module.graph.baseline("z")
    assert baseline is not None and "leave-one-out" in baseline.words()
    assert svi.loss_module.options.rng == "fast" and svi.loss_module.options.backend == "eager"


def test_a_program_with_branches_may_be_run_by_pyro() -> None:
    def branching(data: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(2 * z if z else 1 - z, 1.0), obs=data[0])

    def its_guide(data: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.0))))

    svi = sgc.SVI(branching, its_guide, pyro.optim.Adam({"lr": 0.1}), dynamic="eager", backend="eager")
    pyro.clear_param_store()
    with pytest.warns(StandInWarning, match="Pyro"):
        svi.step(DATA)
    assert pyro.param("q") != 0


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("num_particle", "an SVI has no option 'num_particle'\n  remedy: did you mean 'num_particles'\\?"),
        ("objective", "has no option 'objective'\n  remedy: pass the loss itself: .*sgc.infer.Trace_ELBO"),
        ("lr", "has no option 'lr'\n  remedy: its options are those of sgc.infer.TraceGraph_ELBO"),
    ],
)
def test_options_that_there_are_not(option: str, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        sgc.SVI(model, guide, adam, **{option: 3})


def test_a_loss_has_options_of_its_own() -> None:
    with pytest.raises(ArgumentError, match="remedy: pass it to the loss: sgc.infer.RenyiELBO\\(num_particles="):
        sgc.SVI(model, guide, adam, sgc.infer.RenyiELBO(), num_particles=4)
    with (
        pytest.warns(FutureWarning, match="num_steps"),
        pytest.raises(ArgumentError, match="backend is for the loss .*\n  remedy: leave it out"),
    ):
        pyros = pyro.optim.Adam({"lr": 0.1})
        sgc.SVI(model, guide, pyros, num_steps=1)
        sgc.SVI(model, guide, pyros, pyro.infer.Trace_ELBO(), backend="eager")


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceEnum_ELBO", "TraceMeanField_ELBO", "RenyiELBO"])
def test_the_compiled_class_of_the_same_name_is_named(name: str) -> None:
    with (
        pytest.warns(StandInWarning, match=f"To have it compiled, pass a sgc.infer.{name}$"),
        pytest.raises(OptimizerError, match=f"or take sgc.infer.{name}, with any optimizer"),
    ):
        sgc.SVI(model, guide, adam, getattr(pyro.infer, name)())


def test_another_loss_of_pyros_is_stood_in_for_by_the_default_one() -> None:
    with pytest.warns(StandInWarning, match="pass a sgc.infer.TraceGraph_ELBO$"):
        sgc.SVI(model, guide, pyro.optim.Adam({}), pyro.infer.TraceTailAdaptive_ELBO())


# -- the optimizer


def test_a_rate_that_is_changed_by_hand_counts_and_compiles_nothing() -> None:
    pyro.clear_param_store()
    svi = sgc.SVI(model, guide, sgd, backend="eager").initialize(DATA)
    svi.step(DATA)
    svi.optimizer.param_groups[0]["lr"] = 0.0
    before = pyro.param("logits").detach().clone()
    svi.step(DATA)
    assert torch.equal(pyro.param("logits"), before)
    schedule = torch.optim.lr_scheduler.LambdaLR(svi.optimizer, lambda step: 0.25)
    assert svi.optimizer is schedule.optimizer
    svi.optimizer.param_groups[0]["lr"] = 0.5
    svi.step(DATA)
    assert not torch.equal(pyro.param("logits"), before)
    assert len(svi.loss_module.specializations) == 1


def test_there_is_no_optimizer_before_the_parameters() -> None:
    with pytest.raises(SgcError, match="not there yet\n  remedy: call svi.initialize\\(\\*args\\) first"):
        _ = sgc.SVI(model, guide, adam).optimizer
    given = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert sgc.SVI(model, guide, given).optimizer is given


def test_pyros_have_many() -> None:
    with pytest.raises(SgcError, match="one of torch's for each parameter\n  remedy: look at svi.optim.optim_objs"):
        _ = sgc.SVI(model, guide, pyro.optim.Adam({})).optimizer


# -- how it shows itself


def test_it_names_its_parts() -> None:
    svi = sgc.SVI(model, guide, pyro.optim.ClippedAdam({}), sgc.infer.Trace_ELBO(backend="eager"))
    assert repr(svi) == "SVI(model, guide, optim=pyro.optim.ClippedAdam, loss=Trace_ELBO)"
    assert "model, guide, backend='eager': nothing captured yet" in repr(svi.loss_module)
    svi.step(DATA)
    assert "model, guide, backend='eager': 1 specialization\n" in repr(svi.loss_module)


def test_texts_are_shown_as_they_print() -> None:
    svi = sgc.SVI(model, guide, adam, backend="eager")
    result = svi.run(3, DATA, monitor=1)
    loss_module = svi.loss_module
    shown = (loss_module.guards(), loss_module.profile(), loss_module.explain(), loss_module.verify(DATA), result)
    for value in (*shown, result.monitored, loss_module.gradient_variance(DATA, samples=4)):
        assert repr(value) == str(value)
    assert "print() shows the program after each" in repr(loss_module.stages())


def test_a_result_draws_its_losses() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    result = sgc.SVI(model, guide, adam, backend="eager").run([DATA, DATA + 1], epochs=3)
    axes = result.plot()
    losses, means = axes.lines
    assert losses.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert list(means.get_xdata()) == [2, 4, 6] and means.get_ydata().tolist() == result.epoch_losses.tolist()
    assert len(sgc.SVI(model, guide, adam, backend="eager").run(4, DATA).plot(axes).lines) == 3


# -- what is refused


@pytest.mark.parametrize(
    ("args", "epochs", "text"),
    [
        ((DATA,), 1, "not a Tensor\n  remedy: the number is the first argument"),
        ((2.0, DATA), 1, "not a float\n  remedy"),
        ((2, DATA), 3, "epochs go with minibatches, not with a number of steps\n  remedy"),
        ((-2, DATA), 1, "a number of steps must not be negative: -2"),
    ],
)
def test_runs_that_are_refused(args: tuple[object, ...], epochs: int, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        sgc.SVI(model, guide, adam).run(*args, epochs=epochs)  # type: ignore[arg-type]


def test_a_guide_that_was_called_is_refused_with_a_remedy() -> None:
    with pytest.raises(ArgumentError, match="not callable: None\n  remedy: pass the guide itself"):
        sgc.SVI(model, guide(DATA), adam).step(DATA)  # type: ignore[func-returns-value, arg-type]


# -- pickles


def test_an_svi_of_registered_modules_is_a_pickle_after_a_step() -> None:
    """Pyro leaves a weak reference on each parameter that is looked up in its store, which is no pickle by itself."""
    pyro.clear_param_store()
    program = Program()
    svi = sgc.SVI(program.model, program.guide, sgd, backend="eager")
    svi.step(DATA)
    with pytest.raises(TypeError, match="weakref"):
        pickle.dumps(program)
    text = pickle.dumps(svi)
    expected = [p.detach().clone() for p in program.network.parameters()]
    pyro.clear_param_store()
    loaded = pickle.loads(text)
    own = loaded.model.__self__
    assert own is loaded.guide.__self__ and own is not program
    assert all(torch.equal(one, other) for one, other in zip(own.network.parameters(), expected, strict=True))
    loaded.step(DATA)
    assert not all(torch.equal(one, other) for one, other in zip(own.network.parameters(), expected, strict=True))
