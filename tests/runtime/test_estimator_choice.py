"""``"auto"``: what is measured and chosen, what stays as it is, and what keeps the choice."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.emit.backends.registry import registered
from sgc.infer import TraceGraph_ELBO
from sgc.passes.baselines.leave_one_out import LeaveOneOutNode
from tests.backends import UncompiledSteps
from tests.runtime.sites_that_ask import AVERAGE, DATA, DECAYING, NONE, UnlistedBernoulli, asked, guided, model, words


def test_the_choice_has_a_seed_of_its_own_and_leaves_all_as_it_was() -> None:
    choices = []
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    average = guided(z_low=AVERAGE)

    def guide(data: Tensor) -> None:
        average(data)
        pyro.deterministic("shift", network(torch.stack([data, data + 1])))

    for seed in (0, 5):
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        plain = sgc.compile(model, guide, backend="eager", num_particles=3).initialize(DATA)
        values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        buffers = [buffer.clone() for buffer in network.buffers()]
        states = torch.random.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
        module = asked({"z_top": "auto", "w": "auto"}, guide, num_particles=3)
        assert torch.equal(states[0], torch.random.get_rng_state())
        assert states[1:] == (random.getstate(), numpy.random.get_state()[1].tolist())
        assert all(torch.equal(a, b) for a, b in zip(buffers, network.buffers(), strict=True))
        for name, value in pyro.get_param_store().items():
            assert torch.equal(values.get(name, torch.zeros_like(value)), value)
        assert all(parameter.grad is None for parameter in module.parameters())
        assert words(plain)["z_low"] == words(module)["z_low"] == DECAYING
        choices.append(module.choice())
    assert choices[0] == choices[1]
    assert choices[0].estimators.keys() == {"z_top"} and choices[0].others == ("w",)


def test_the_graph_and_the_reports_say_what_was_measured() -> None:
    module = asked({"z_top": "auto"}, guided(z_low=AVERAGE))
    assert module.graph.is_measured("z_top") and module.graph.is_asked("z_top")
    assert not module.graph.is_measured("z_low")
    assert "gradient: score function, chosen by measurement" in str(module.graph)
    assert "it was measured" in str(module.explain())
    text = str(module.choice())
    assert "least variance of the gradient x time of a step, from 200 gradients" in text
    assert "z_top" in text and "decaying average" in text and "time of a step" in text
    assert "<table" in module.choice()._repr_html_()
    with pytest.raises(KeyError):
        module.choice().site("w")
    with pytest.raises(KeyError):
        module.choice().site("z_top").candidate("leave-one-out")


def test_infer_asks_for_it_too() -> None:
    module = sgc.compile(model, guided(z_low={"estimator": "auto"}), backend="eager").initialize(DATA)
    assert module.choice().estimators == {"z_low": "decaying average"}
    assert words(module) == {"w": "pathwise", "z_top": NONE, "z_low": DECAYING}


def test_the_choice_given_as_an_option_is_the_same_program() -> None:
    losses, gradients = [], []
    first = asked({"*": "auto"}, num_particles=2)
    for module in (first, asked(dict(first.choice().estimators), num_particles=2)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss = module(DATA)
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_later_specializations_keep_it_and_measure_new_sites_alone() -> None:
    def longer(data: Tensor) -> None:
        model(data)
        if len(data) > 3:
            pyro.factor("more", 5 * pyro.sample("z_more", dist.Bernoulli(0.5)))

    def guide(data: Tensor) -> None:
        guided()(data)
        if len(data) > 3:
            pyro.sample("z_more", UnlistedBernoulli(logits=pyro.param("more", torch.tensor(0.0))))

    module = sgc.compile(longer, guide, backend="eager", estimators={"z_*": "auto"})
    module(DATA)
    first = module.choice()
    module(DATA[:2])
    assert module.choice() == first
    module(torch.ones(5))
    later = module.choice()
    assert later.sites[:2] == first.sites and [row.site for row in later.sites[2:]] == ["z_more"]
    assert module.graph.is_measured("z_top") and module.graph.is_measured("z_more")
    module(torch.ones(6))
    assert module.choice() == later


def test_copies_and_pickles_and_files_keep_it(tmp_path: Path) -> None:
    module = asked({"z_low": "auto"})
    module(DATA).backward()
    for other in (copy.copy(module), copy.deepcopy(asked_of_functions())):
        assert other.choice().estimators == {"z_low": "decaying average"}
        other(DATA)
        assert other.graph.is_measured("z_low") and words(other)["z_low"] == DECAYING
    kept = io.BytesIO()
    torch.save(module.choice(), kept)
    sgc.save(module, tmp_path / "loss.sgc")
    loaded = sgc.load(tmp_path / "loss.sgc")
    assert loaded.graph.is_measured("z_low") and loaded.graph.baseline("z_low") is not None
    assert "chosen by measurement" in str(loaded.graph)
    torch.manual_seed(2)
    expected = module(DATA)
    torch.manual_seed(2)
    assert torch.equal(loaded(DATA), expected)


def asked_of_functions() -> sgc.LossModule:
    return asked({"z_low": "auto"})


def test_steps_are_those_of_a_guide_that_asks_itself() -> None:
    """A compiled training with the option, and one with the same baselines in the guide: the same numbers."""
    runs = []
    for estimators, guide in (({"z_*": "auto"}, guided()), ({}, guided(z_top=AVERAGE, z_low=AVERAGE))):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        with registered(UncompiledSteps()):
            loss = TraceGraph_ELBO(estimators=estimators, backend="inductor")  # type: ignore[arg-type]
            svi = sgc.SVI(model, guide, torch.optim.Adam, loss=loss)
            runs.append([svi.step(DATA) for _ in range(6)])
            values = pyro.get_param_store()._params.values()
            runs[-1] += [number for value in values for number in value.detach().flatten().tolist()]
        assert svi.stepper is not None and svi.stepper.compiled.built == 1
        if estimators:
            assert set(svi.loss_module.choice().estimators.values()) == {"decaying average"}
            assert svi.loss_module.verify(DATA)
    assert runs[0] == runs[1]


def test_verify_says_that_the_option_is_not_pyros() -> None:
    module = asked({"z_*": "decaying average", "w": "score function"})
    for _ in range(4):
        module(DATA).backward()
    result = module.verify(DATA)
    assert result and any("the option estimators is not Pyro's" in text for text in result.differs_by_design)
    leave_one_out = asked({"*": "leave-one-out", "w": "leave-one-out"}, num_particles=3)
    assert leave_one_out.verify(DATA)
    assert len(list(leave_one_out.graph.of_type(LeaveOneOutNode))) == 3


def test_eager_pyro_is_told_too() -> None:
    """Where a program cannot be captured, eager Pyro has the estimators that it can have: those that are named."""

    def branching(data: Tensor) -> None:
        model(data)
        if pyro.sample("coin", dist.Bernoulli(0.5)) > 0.5:
            pyro.factor("heads", torch.tensor(1.0))

    def guide(data: Tensor) -> None:
        guided()(data)
        pyro.sample("coin", dist.Bernoulli(logits=pyro.param("coin_logit", torch.tensor(0.0))))

    losses = TraceGraph_ELBO(dynamic="eager", estimators={"coin": "decaying average", "z_*": "auto"})
    with pytest.warns(sgc.errors.StandInWarning):
        losses.loss_and_grads(branching, guide, DATA)
    assert any("coin" in name for name in pyro.get_param_store() if name.startswith("__baseline"))


def test_a_branch_on_a_sample_is_measured_where_it_is_taken() -> None:
    def branching(data: Tensor) -> None:
        model(data)
        if pyro.sample("coin", dist.Bernoulli(0.5)) > 0.5:
            pyro.factor("heads", torch.tensor(1.0))

    def guide(data: Tensor) -> None:
        guided()(data)
        pyro.sample("coin", dist.Bernoulli(logits=pyro.param("coin_logit", torch.tensor(0.0))))

    module = sgc.compile(branching, guide, backend="eager", dynamic="speculate", estimators={"z_low": "auto"})
    module(DATA).backward()
    assert module.choice().estimators == {"z_low": "decaying average"}


def test_with_many_particles_one_after_another_they_are_told_apart_as_they_run() -> None:
    """Up to 16 run in one program while it is measured, and stay there only if a site needs the others."""
    module = asked({"z_low": "auto"}, num_particles=6)
    assert {c.name for c in module.choice().site("z_low").candidates} == {NONE, "leave-one-out", "decaying average"}
    together = module.choice().estimators["z_low"] == "leave-one-out"
    assert (module.graph.particles.runs, module.graph.particles.calls) == ((6, 1) if together else (1, 6))
    module = asked({"z_low": "auto"}, num_particles=17)
    assert {c.name for c in module.choice().site("z_low").candidates} == {NONE, "decaying average"}


def test_costs_that_are_not_finite_choose_nothing() -> None:
    def hopeless(data: Tensor) -> None:
        model(data)
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("never", torch.where(z > 0, -torch.inf, 0.0))

    def guide(data: Tensor) -> None:
        guided()(data)
        pyro.sample("z", UnlistedBernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    module = sgc.compile(hopeless, guide, backend="eager", estimators={"z": "auto"}).initialize(DATA)
    assert module.choice().estimators == {"z": "score function"}
    assert module.graph.baseline("z") is None


def test_sites_that_are_as_good_alike_are_alike() -> None:
    """Three sites that differ in their costs: within the tie the same baseline for all."""
    module = asked({"z_*": "auto"}, num_particles=3)
    assert len(set(module.choice().estimators.values())) == 1


def test_of_a_large_program_fewer_gradients_are_drawn() -> None:
    """How many depends on the program alone, so that the choice is the same on any machine; sizes stay open."""
    pixels = 20_000

    def large(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            weights = pyro.param("weights", torch.zeros(pixels))
            pyro.sample("x", dist.Normal(z[:, None] * weights, 1.0).to_event(1), obs=data)

    def guess(data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(0.3))))

    data = torch.zeros(200, pixels)
    module = sgc.compile(large, guess, backend="eager", estimators={"z": "auto"}).initialize(data)
    assert module.choice().draws == 40
    module(torch.zeros(150, pixels))
    module(torch.zeros(100, pixels))
    assert len(module.specializations) == 2  # the second one has open sizes
