"""The option ``estimators`` and ``"auto"``: who asks for what, what stays as it is, and what keeps the choice."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from torch import Tensor, nn

import sgc
from sgc.emit.backends.registry import registered
from sgc.errors import ArgumentError, BaselineError, EstimatorError, SgcError
from sgc.infer import Trace_ELBO, TraceGraph_ELBO
from sgc.passes.baselines.leave_one_out import LeaveOneOutNode
from tests.backends import UncompiledSteps

DATA = torch.tensor([0.3, -0.8, 1.2])
AVERAGE = {"baseline": {"use_decaying_avg_baseline": True}}


def model(data: Tensor) -> None:
    pyro.factor("far", torch.tensor(40.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(data)):
        z = pyro.sample("z_top", dist.Bernoulli(0.5))
        low = pyro.sample("z_low", dist.Bernoulli(0.3 + 0.3 * z))
        factor = 20 * low
        pyro.sample("x", dist.Normal(z + factor + w, 3.0), obs=data)


def guided(**infer: dict[str, Any]) -> Callable[[Tensor], None]:
    """A guide of which some sites ask for something themselves."""

    def guide(data: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5), infer=infer.get("w", {}))
        logits = pyro.param("logits", torch.tensor(0.1))
        with pyro.plate("rows", len(data)):
            for name in ("z_top", "z_low"):
                pyro.sample(name, dist.Bernoulli(logits=logits), infer=infer.get(name, {}))

    return guide


def asked(estimators: dict[str, Any], guide: Callable[..., None] | None = None, **options: Any) -> sgc.LossModule:
    return sgc.compile(model, guide or guided(), backend="eager", estimators=estimators, **options).initialize(DATA)


def words(module: sgc.LossModule) -> dict[str, str]:
    """What each site has: its estimator, and its baseline."""
    graph = module.graph
    return {
        site: graph.estimator(site).value + (f" - {baseline.words()}" if (baseline := graph.baseline(site)) else "")
        for site in ("w", "z_top", "z_low")
    }


NONE, DECAYING, OTHERS = (
    "score function",
    "score function - decaying average (beta 0.9)",
    "score function - leave-one-out, the mean of the other 2 particles' costs",
)


@pytest.mark.parametrize(
    ("estimators", "expected"),
    [
        ({"z_top": "decaying average"}, ("pathwise", DECAYING, NONE)),
        ({"z_*": "leave-one-out"}, ("pathwise", OTHERS, OTHERS)),
        ({"*": "score function"}, (NONE, NONE, NONE)),
        ({"*": "leave-one-out", "w": "pathwise"}, ("pathwise", OTHERS, OTHERS)),
        ({"z_low": "score function", "z_*": "leave-one-out", "*": "decaying average"}, ("pathwise", OTHERS, NONE)),
        ({"w": "decaying average", "*": "leave-one-out"}, (DECAYING, OTHERS, OTHERS)),
        ({"z_?ow": "leave-one-out", "z_[lt]*": "decaying average"}, ("pathwise", DECAYING, OTHERS)),
    ],
    ids=str,
)
def test_names_go_before_patterns_and_the_first_pattern_counts(
    estimators: dict[str, Any], expected: tuple[str, ...]
) -> None:
    module = asked(estimators, num_particles=3)
    assert tuple(words(module).values()) == expected


def test_a_name_goes_before_infer_and_infer_before_a_pattern() -> None:
    average = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}}
    guide = guided(z_top=average, z_low={**average}, w={"estimator": "score function"})
    half = DECAYING.replace("0.9", "0.5")
    assert tuple(words(asked({"*": "leave-one-out"}, guide, num_particles=3)).values()) == (NONE, half, half)
    exact = asked({"z_top": "leave-one-out", "z_low": "decaying average", "w": "pathwise"}, guide, num_particles=3)
    assert tuple(words(exact).values()) == ("pathwise", OTHERS, half)
    assert tuple(words(asked({"z_top": "score function"}, guide)).values()) == (NONE, NONE, half)
    assert average == {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}}


def test_what_switches_a_baseline_off_asks_for_nothing() -> None:
    off = {"baseline": {"use_decaying_avg_baseline": False, "nn_baseline": None}}
    assert words(asked({"*": "decaying average"}, guided(z_low=off)))["z_low"] == DECAYING


def test_observed_sites_and_sites_of_the_model_alone_are_not_asked() -> None:
    def with_more(data: Tensor) -> None:
        model(data)
        pyro.sample("more", dist.Normal(0.0, 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = sgc.compile(with_more, guided(), backend="eager", estimators={"*": "score function"}).initialize(DATA)
    assert module.graph.estimator("more").value == "pathwise" and not module.graph.is_asked("more")
    with pytest.raises(EstimatorError, match=r"'more', which is no latent site of the guide"):
        sgc.compile(with_more, guided(), backend="eager", estimators={"more": "pathwise"}).initialize(DATA)


def test_a_rejection_sampler_keeps_its_estimator_beside_a_baseline() -> None:
    def gamma() -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", RejectionStandardGamma(pyro.param("a", torch.tensor(1.5))))

    module = sgc.compile(gamma, guide, backend="eager", estimators={"z": "decaying average"}).initialize()
    assert module.graph.estimator("z").value == "partially pathwise" and module.graph.baseline("z") is not None
    module = sgc.compile(gamma, guide, backend="eager", estimators={"z": "auto"}).initialize()
    assert {c.name for c in module.choice().site("z").candidates} == {"partially pathwise", "decaying average"}
    assert module.graph.estimator("z").value == "partially pathwise"
    assert module.gradient_variance(samples=5).total > 0


# -- errors


@pytest.mark.parametrize(
    ("estimators", "error", "text"),
    [
        ({"y": "auto"}, EstimatorError, "'y', which is no latent site of the guide"),
        ({"x": "score function"}, EstimatorError, "'x', which is no latent site of the guide"),
        ({"rows": "auto"}, EstimatorError, "its latent sites are 'w', 'z_top', 'z_low'"),
        ({"q_*": "auto"}, EstimatorError, r"'q_\*', which matches no latent site of the guide"),
        ({"z_top": "pathwise"}, EstimatorError, "at site 'z_top': the estimator 'pathwise' cannot be had here"),
        ({"z_top": "leave-one-out"}, BaselineError, "at site 'z_top': .*there is only one particle"),
        ({"z_top": "nn_baseline"}, ArgumentError, "'nn_baseline' at 'z_top', which is unknown"),
        ({"z_top": {"nn_baseline": None}}, ArgumentError, "which is unknown"),
        ({3: "auto"}, ArgumentError, "3 in the place of a site's name"),
        ("auto", ArgumentError, "must map names of sites to estimators, not 'auto'"),
        ({"z_top": "pathwise", "*": "auto"}, EstimatorError, "cannot be had here"),
        ({"w*": "leave-one-out"}, EstimatorError, r"'leave-one-out' for 'w\*', which matches no site with a score"),
        ({"*": "score function", "w?": "auto"}, EstimatorError, r"'w\?', which matches no latent site"),
    ],
)
def test_what_cannot_be_had_is_an_error_and_nothing_changes(estimators: Any, error: Any, text: str) -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(error, match=text):
        asked(estimators)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_network_is_not_judged_before_it_is_trained() -> None:
    network = nn.Linear(3, 1)
    guide = guided(z_top={"baseline": {"nn_baseline": network, "nn_baseline_input": DATA}})
    with pytest.raises(BaselineError, match="at site 'z_top': .*'auto' cannot judge the site's nn_baseline"):
        asked({"z_top": "auto"}, guide)


def test_other_objectives_have_no_such_option() -> None:
    with pytest.raises(ArgumentError, match="estimators cannot be had with the objective Trace_ELBO"):
        sgc.compile(model, guided(), objective="Trace_ELBO", estimators={"z_low": "score function"})
    with pytest.raises(TypeError, match="estimators"):
        Trace_ELBO(estimators={"z_low": "score function"})  # type: ignore[call-arg]
    with pytest.raises(EstimatorError, match="at site 'z_low': the estimator 'auto' cannot be had with the objective"):
        sgc.compile(model, guided(z_low={"estimator": "auto"}), objective="Trace_ELBO").initialize(DATA)


def test_without_auto_there_is_no_choice() -> None:
    with pytest.raises(SgcError, match="nothing has been captured yet"):
        sgc.compile(model, guided()).choice()
    with pytest.raises(SgcError, match='no site asks for "auto"'):
        asked({"z_top": "score function"}).choice()


# -- measured


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
            pyro.sample("z_more", dist.Bernoulli(logits=pyro.param("more", torch.tensor(0.0))))

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
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))

    module = sgc.compile(hopeless, guide, backend="eager", estimators={"z": "auto"}).initialize(DATA)
    assert module.choice().estimators == {"z": "score function"}
    assert module.graph.baseline("z") is None


def test_sites_that_are_as_good_alike_are_alike() -> None:
    """Three sites that differ in their costs: within the tie the same baseline for all."""
    module = asked({"z_*": "auto"}, num_particles=3)
    assert len(set(module.choice().estimators.values())) == 1
