"""Estimators: what a site asks for, what is refused, and that a new one is a file and a line in a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from torch import Tensor

import sgc
from sgc.errors import EstimatorError
from sgc.graph import estimator_rules, keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.derived_nodes import SurrogateTermNode
from sgc.graph.drawing.wording import Wording
from sgc.graph.estimator_rules import EstimatorRule, Needs, Sampler, register
from sgc.graph.nodes import CostNode, Estimator, Payload, ScorePartNode
from sgc.graph.verify import verify
from sgc.passes import estimators
from tests.statistical.enumerate import exact_gradient, expected_estimate
from tests.statistical.test_exact import chain

X = torch.tensor([0.3, -0.8])


def asking(
    estimator: object, family: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    family = family or (lambda loc: dist.Normal(loc, 1.0).to_event(1))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", family(pyro.param("loc", torch.tensor([0.2, 0.5]))), infer={"estimator": estimator})

    return model, guide


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor), "torchscript"])
def test_a_normal_may_ask_for_its_score_function(backend: Any) -> None:
    """Pyro has that as ``has_rsample_(False)`` of the distribution; the numbers are the same."""
    module = sgc.compile(*asking("score function"), backend=backend, rng="torch").initialize(X)
    assert module.graph.estimator("z") == Estimator.SCORE_FUNCTION
    (loc,) = module.param_store.parameters()
    pyro.set_rng_seed(3)
    loss = module(X)
    loss.backward()
    ours, loc.grad = loc.grad, None
    model, guide = asking(None, lambda loc: dist.Independent(dist.Normal(loc, 1.0).has_rsample_(False), 1))
    pyro.set_rng_seed(3)
    theirs = pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, X)
    assert float(loss) == pytest.approx(theirs, rel=1e-5)
    assert ours is not None and torch.allclose(ours, loc.grad, rtol=1e-4)
    report = module.verify(X)
    assert report and report.differs_by_design
    assert "'z' asks for the estimator 'score function'" in str(report)


def test_asking_for_what_is_the_default_changes_nothing() -> None:
    results = []
    for estimator in (None, "pathwise"):
        pyro.clear_param_store()
        module = sgc.compile(*asking(estimator), backend="eager").initialize(X)
        pyro.set_rng_seed(1)
        module(X).backward()
        (loc,) = module.param_store.parameters()
        results.append(loc.grad)
        assert module.verify(X) and not module.verify(X).reasons
    assert torch.equal(*results)


REFUSED: dict[str, tuple[object, Any, str]] = {
    "unknown": ("reinforce", None, "the estimator 'reinforce' is unknown"),
    "no text": (3, None, "the estimator 3 is unknown"),
    "no rejection sampler": ("partially pathwise", None, "a Normal is no rejection sampler"),
    "no rsample": (
        "pathwise",
        lambda loc: dist.Normal(loc, 1.0).has_rsample_(False).to_event(1),
        "a Normal has no reparameterised sample",
    ),
    "a moving support": (
        "score function",
        lambda loc: dist.Uniform(loc - 5, loc + 5).to_event(1),
        "the support of a Uniform depends on its parameters",
    ),
    "a point": ("score function", lambda loc: dist.Delta(loc).to_event(1), "the support of a Delta"),
    "an acceptance": (
        "pathwise",
        lambda loc: RejectionStandardGamma(loc.exp()).to_event(1),
        "a RejectionStandardGamma is a rejection sampler",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_an_error_before_the_capture(name: str) -> None:
    estimator, family, text = REFUSED[name]
    state = torch.get_rng_state()
    with pytest.raises(EstimatorError) as caught:
        sgc.compile(*asking(estimator, family), backend="eager")(X)
    error = caught.value
    assert text in error.problem and error.site == "z" and error.remedy and "''" not in error.remedy
    assert error.source is not None and 'infer={"estimator": estimator}' in error.source.text
    assert torch.equal(torch.get_rng_state(), state) and not pyro.get_param_store()._params


def test_the_model_cannot_ask() -> None:
    model, guide = asking(None)
    asks = pyro.poutine.infer_config(model, lambda site: {"estimator": "score function"})
    with pytest.raises(EstimatorError, match="the model's statement asks for an estimator, which only the guide's can"):
        sgc.compile(asks, guide, backend="eager")(X)


def test_a_site_that_is_named_by_a_subsample_cannot_ask() -> None:
    def model() -> None:
        for i in pyro.plate("rows", 5, subsample_size=2):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        for i in pyro.plate("rows", 5, subsample_size=2):
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0), infer={"estimator": "score function"})

    with pytest.raises(EstimatorError, match="not in each run of the guide under one name"):
        sgc.compile(model, guide, backend="eager")()


# -- a new estimator: what would be its file


@dataclass(frozen=True)
class WholeScoreTermNode(SurrogateTermNode):
    """A score function times the sum of all costs; the first operand is the score function."""

    noun: ClassVar[str] = "whole score term"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return ScorePartNode, CostNode

    def compute(self, run: Arithmetic) -> Value:
        score, *costs = self.operands
        total = run.call(torch.sum, run.signed(costs[0]))
        for cost in costs[1:]:
            total = run.call(torch.add, total, run.call(torch.sum, run.signed(cost)))
        product = run.call(torch.mul, run.value(score), run.call(torch.detach, total))
        return run.call(torch.sum, product)


class WholeCost(EstimatorRule):
    """The score function times all costs, downstream or not (Williams 1992)."""

    estimator: ClassVar[Estimator] = Estimator("whole cost", scored=True)
    needs: ClassVar[Needs] = Needs(score_function=True, detached_sample=True)

    def refuses(self, sampler: Sampler) -> str | None:
        return "it has a reparameterised sample" if sampler.has_rsample else None

    def add_terms(self, graph: sgc.StochasticGraph, site: str) -> list[SurrogateTermNode]:
        operands = keys.score_function(site), *graph.costs()
        return [WholeScoreTermNode(keys.score_term(site), (), site, operands)]

    def breaches(self, graph: sgc.StochasticGraph, site: str) -> Iterator[str]:
        term = graph.payload(keys.score_term(site)) if keys.score_term(site) in graph else None
        if keys.SURROGATE in graph and not isinstance(term, WholeScoreTermNode):
            yield f"the site {site!r} has no term of all costs"

    def words(self, graph: sgc.StochasticGraph, site: str, wording: Wording) -> Iterator[str]:
        yield f"gradient: score function times all {len(graph.costs())} costs"


@pytest.fixture
def whole_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line in the list."""
    monkeypatch.setattr(estimator_rules, "_RULES", dict(estimator_rules._RULES))
    monkeypatch.setattr(estimators, "ESTIMATORS", (*estimators.ESTIMATORS, WholeCost()))
    register(WholeCost())


@pytest.mark.usefixtures("whole_cost")
def test_a_new_estimator_is_a_file_and_a_line() -> None:
    torch.set_default_dtype(torch.float64)
    model, guide, args, supports = chain(lambda name, shape: {"estimator": "whole cost"} if name == "c" else {})
    module = sgc.compile(model, guide, backend="eager").initialize(*args)
    leaves = list(module.param_store.parameters())
    assert "gradient: score function times all 7 costs" in str(module.graph)
    assert "1 whole score term" in str(module.graph)
    exact_loss, exact = exact_gradient(model, guide, args, supports, leaves)
    loss, estimated = expected_estimate(module, guide, args, supports, leaves)
    assert torch.allclose(loss, exact_loss, rtol=1e-12)
    for ours, theirs in zip(estimated, exact, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    broken = module.graph.copy()
    broken.remove_node(keys.score_term("c"))
    with pytest.raises(sgc.errors.GraphError, match="the site 'c' has no term of all costs"):
        verify(broken)
