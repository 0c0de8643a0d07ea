"""Closed forms of two densities: where the graph proves them right, where it refutes them, and what a user sees."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro import poutine
from torch import Tensor

import sgc
from sgc.emit.emitter import emit_surrogate
from sgc.errors import CaptureError, MeanFieldWarning, ReparameterizationError
from sgc.graph.program import SiteKind
from sgc.passes.objectives.closed_forms import DivergenceNode

Pair = tuple[Callable[..., Any], Callable[..., Any]]
X = torch.tensor([0.3, -0.8, 1.2])


def parameter(name: str, value: float = 0.3) -> Any:
    return pyro.param(name, torch.tensor(value))


def same_order() -> Pair:
    """Each density of the second site depends on the first."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(parameter("qa"), 0.5))
        pyro.sample("b", dist.Normal(0.5 * a + parameter("qb"), 0.7))

    return model, guide


def other_order_but_independent() -> Pair:
    """Pyro warns, for the order differs; but nothing of the guide's is downstream of a site."""
    model, _ = same_order()

    def guide(x: Tensor) -> None:
        pyro.sample("b", dist.Normal(parameter("qb"), 0.7))
        pyro.sample("a", dist.Normal(parameter("qa"), 0.5))

    return model, guide


def reversed_in_the_guide() -> Pair:
    """The guide draws ``a`` from ``b``, and the model's density of ``b`` depends on ``a``."""
    model, _ = same_order()

    def guide(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(parameter("qb"), 0.7))
        pyro.sample("a", dist.Normal(0.5 * b + parameter("qa"), 0.5))

    return model, guide


def reversed_by_way_of_a_third() -> Pair:
    """``b`` reaches ``a`` by an auxiliary site."""
    model, _ = same_order()

    def guide(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(parameter("qb"), 0.7))
        u = pyro.sample("u", dist.Normal(b, 0.5), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Normal(0.5 * u + parameter("qa"), 0.5))

    return model, guide


def reversed_by_a_write() -> Pair:
    """The dependence runs through a tensor that is written in place."""
    model, _ = same_order()

    def guide(x: Tensor) -> None:
        loc = torch.zeros(2)
        b = pyro.sample("b", dist.Normal(parameter("qb"), 0.7))
        loc[1] = b
        pyro.sample("a", dist.Normal(loc.sum() + parameter("qa"), 0.5))

    return model, guide


def same_order_in_pyros_eyes() -> Pair:
    """Pyro is silent, since the orders agree; but a site that the guide alone draws first makes no difference."""

    def model(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Normal(b, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(parameter("qu"), 0.4), infer={"is_auxiliary": True})
        b = pyro.sample("b", dist.Normal(u + parameter("qb"), 0.7))
        pyro.sample("a", dist.Normal(b + u + parameter("qa"), 0.5))

    return model, guide


EXACT: dict[Callable[[], Pair], dict[str, bool]] = {
    same_order: {"a": True, "b": True},
    other_order_but_independent: {"a": True, "b": True},
    reversed_in_the_guide: {"a": True, "b": False},
    reversed_by_way_of_a_third: {"a": True, "b": False},
    reversed_by_a_write: {"a": True, "b": False},
    same_order_in_pyros_eyes: {"a": True, "b": True},
}


@pytest.mark.filterwarnings("ignore:Failed to verify mean field")
@pytest.mark.parametrize("make", EXACT)
def test_the_graph_proves_or_refutes_each(make: Callable[[], Pair]) -> None:
    expected = EXACT[make]
    wrong = [site for site, exact in expected.items() if not exact]
    module = sgc.compile(*make(), backend="eager", objective="TraceMeanField_ELBO")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.initialize(X)
    told = [str(one.message) for one in caught if one.category is MeanFieldWarning]
    forms = {node.site: node.is_exact for node in module.graph.of_type(DivergenceNode)}
    assert forms == expected
    assert len(told) == len(wrong)
    for site, text in zip(wrong, told, strict=True):
        assert text.startswith(f"at site '{site}': -KL(q({site}) || p({site})) is not the expectation of")
        assert "depends on 'a', which the guide draws downstream of 'b'" in text
        assert 'pyro.sample("b", dist.Normal(a, 1.0))' in text  # the model's line
        assert 'pyro.sample("a", dist.Normal(' in text  # the guide's
    assert module.verify(X)  # the numbers are Pyro's
    text = str(module.graph)
    assert text.count("in closed form, which is wrong: p(b) depends on 'a', downstream of 'b'") == len(wrong)


class AtNodes(poutine.messenger.Messenger):
    """Gives each normal site of a guide the value that a node of a quadrature has in it."""

    def __init__(self, nodes: tuple[float, ...]) -> None:
        super().__init__()
        self.nodes = list(nodes)
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        msg["value"] = self.values[msg["name"]] = msg["fn"].loc + msg["fn"].scale * self.nodes.pop()
        msg["done"] = True


def expected_loss(make: Callable[[], Pair], objective: Any) -> float:
    """Exact: the loss is a polynomial of degree two in the normal noise of each site."""
    model, guide = make()
    module = sgc.compile(model, guide, backend="eager", objective=objective).initialize(X)
    specialization = module.specializations[-1]
    fetched = [owner.fetch() for owner in specialization.owners.values()]
    inputs = [X if tensor is None else tensor for tensor in fetched]
    nodes, weights = hermegauss(3)
    weights = weights / weights.sum()
    sites = specialization.graph.sites(SiteKind.LATENT)
    emitted = emit_surrogate(specialization.graph, loss_only=True, forced=sites).module
    total = 0.0
    for at in itertools.product(range(3), repeat=len(sites)):
        with AtNodes(tuple(nodes[i] for i in at)) as drawn:
            guide(X)
        loss, *_ = emitted(*inputs, *(drawn.values[site].detach() for site in sites))
        total += math.prod(weights[i] for i in at) * float(loss)
    return total


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", EXACT)
def test_what_is_proved_has_the_expectation_of_the_elbo_and_what_is_refuted_not(make: Callable[[], Pair]) -> None:
    torch.set_default_dtype(torch.float64)
    closed, sampled = (expected_loss(make, objective) for objective in ("TraceMeanField_ELBO", "elbo"))
    if all(EXACT[make].values()):
        assert closed == pytest.approx(sampled, rel=1e-7)
    else:
        assert abs(closed - sampled) > 0.1


def test_costs_in_closed_form_leave_the_costs_downstream_of_their_site() -> None:
    graph = sgc.compile(*same_order(), backend="eager", objective="TraceMeanField_ELBO").initialize(X).graph
    assert graph.costs() == ("log p(x)", "-KL(q(a) || p(a))", "-KL(q(b) || p(b))")
    assert graph.provenance("-KL(q(a) || p(a))") == frozenset()
    assert graph.provenance("-KL(q(b) || p(b))") == {"a"}
    assert graph.downstream_costs("a") == {"log p(x)", "-KL(q(b) || p(b))"}
    assert graph.downstream_costs("b") == {"log p(x)"}
    assert "elbo: 1 log p term - 2 divergences" in str(graph)
    assert "-KL(q(b) || p(b))" in graph.to_dot() and "-KL(q(b) || p(b))" in graph.to_mermaid()


def test_sites_without_a_closed_form_keep_both_densities() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Cauchy(0.0, 1.0))
        with pyro.plate("rows", 3):
            b = pyro.sample("b", dist.Gamma(2.0, 1.0 + a**2))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("a", dist.Normal(parameter("qa"), 0.5))
        with pyro.plate("rows", 3):
            pyro.sample("b", dist.Gamma(pyro.param("qb", torch.ones(3)).exp(), 1.0))

    module = sgc.compile(model, guide, backend="eager", objective="TraceMeanField_ELBO").initialize(X)
    assert set(module.graph.costs()) == {"log p(a)", "-log q(a)", "log p(x)", "-KL(q(b) || p(b))"}
    assert module.graph.payload("-KL(q(b) || p(b))").shape == (3,)
    assert module.verify(X)


def test_what_is_folded_is_said_once() -> None:
    """A chain: each closed form goes with its step."""

    def model(x: Tensor) -> None:
        state = torch.tensor(0.0)
        for t in range(6):
            state = pyro.sample(f"z_{t}", dist.Normal(state, 1.0))
        pyro.sample("x", dist.Normal(state, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        for t in range(6):
            pyro.sample(f"z_{t}", dist.Normal(parameter(f"q_{t}"), 1.0))

    text = str(sgc.compile(model, guide, backend="eager", objective="TraceMeanField_ELBO").initialize(X).graph)
    assert "-KL(q(z_t) || p(z_t)), t = 0 … 5: [], depends on z_{t-1}, in closed form" in text


@pytest.mark.parametrize("scaled", ["model", "guide"])
def test_the_guides_scale_is_taken_for_both_densities_and_a_warning_says_so(scaled: str) -> None:
    model, guide = same_order()
    if scaled == "model":
        model = poutine.scale(model, 0.5)
    else:
        guide = poutine.scale(guide, 0.5)
    module = sgc.compile(model, guide, backend="eager", objective="TraceMeanField_ELBO")
    with pytest.warns(
        MeanFieldWarning, match="the model scales or masks the density of 'a' .* otherwise than the guide"
    ):
        module.initialize(X)
    assert module.verify(X)


def test_scales_and_masks_that_are_alike_are_fine() -> None:
    mask = torch.tensor([True, False, True])

    def model(x: Tensor) -> None:
        with poutine.scale(scale=3.0), pyro.plate("rows", 3), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with poutine.scale(scale=3.0), pyro.plate("rows", 3), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(pyro.param("q", torch.tensor([0.1, 0.5, -0.4])), 1.0))

    module = sgc.compile(model, guide, backend="eager", objective="TraceMeanField_ELBO")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.initialize(X)
    assert module.verify(X)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a choice": (lambda: dist.Bernoulli(torch.tensor(0.5)), "A Bernoulli needs a score function here"),
    "no rsample": (
        lambda: dist.Normal(parameter("q"), 1.0).has_rsample_(False),
        "A Normal needs a score function here",
    ),
}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_sites_that_need_a_score_function_are_refused(name: str, validated: bool) -> None:
    """Pyro's text and type; without Pyro's validation too, where its gradient would be biased in silence."""
    family, words = REFUSED[name]

    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.5) if name == "a choice" else dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", family())

    with pyro.validation_enabled(validated), pytest.raises(NotImplementedError) as caught:
        sgc.compile(model, guide, backend="eager", objective="TraceMeanField_ELBO")()
    error = caught.value
    assert isinstance(error, ReparameterizationError) and error.site == "z"
    assert error.problem == f"All distributions in the guide must be fully reparameterized. {words}"
    assert error.source is not None and error.source.text == 'pyro.sample("z", family())'
    assert error.remedy == "take TraceGraph_ELBO or Trace_ELBO, which have one"


def test_a_divergence_that_torch_differentiates_is_refused() -> None:
    def model() -> None:
        pyro.sample("precision", dist.Wishart(torch.tensor(3.0), torch.eye(2)))

    def guide() -> None:
        pyro.sample("precision", dist.Wishart(parameter("df", 4.0), torch.eye(2)))

    with pytest.raises(CaptureError, match="of two distributions Wishart by automatic differentiation") as caught:
        sgc.compile(model, guide, backend="eager", objective="TraceMeanField_ELBO")()
    assert caught.value.site == "precision" and "TraceGraph_ELBO" in caught.value.remedy


def test_an_observed_site_that_the_guide_draws_has_one_density() -> None:
    """Pyro then takes ``log p`` alone."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(parameter("q"), 0.5))

    conditioned = poutine.condition(model, data={"z": torch.tensor(0.4)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = sgc.compile(conditioned, guide, backend="eager", objective="TraceMeanField_ELBO").initialize(X)
        theirs = pyro.infer.TraceMeanField_ELBO().loss(conditioned, guide, X)
    assert module.graph.costs() == ("log p(z)", "log p(x)")
    assert float(module(X)) == pytest.approx(theirs, rel=1e-6)
