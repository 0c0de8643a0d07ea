"""The option ``estimators``: what it asks of which site, beside ``infer``, and what it cannot ask."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from torch import Tensor, nn

import sgc
from sgc.errors import ArgumentError, BaselineError, EstimatorError, SgcError
from sgc.infer import Trace_ELBO
from tests.runtime.sites_that_ask import DATA, DECAYING, NONE, OTHERS, asked, guided, model, words


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
    with pytest.raises(EstimatorError, match=r"at site 'more'.* at a site that the guide does not draw"):
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


def test_where_no_site_follows_a_pattern_with_auto_it_is_said_why() -> None:
    average = {"baseline": {"use_decaying_avg_baseline": True}}
    guide = guided(z_top=average, z_low={**average}, w={"estimator": "pathwise"})
    with pytest.raises(SgcError, match='asks for "auto" by a pattern, .*\n  remedy: name the site in the option'):
        asked({"*": "auto"}, guide).choice()
    assert {*asked({"z_low": "auto", "*": "auto"}, guide).choice().estimators} == {"z_low"}
