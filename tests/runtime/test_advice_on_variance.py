"""What a report on the gradient's variance advises, of figures that are given."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.runtime.variance.remedies import SiteVariance
from sgc.runtime.variance.terms import OTHER_TERMS
from sgc.runtime.variance.variance_report import GradientVariance

ROWS = 3


def model(x: Tensor) -> None:
    with pyro.plate("rows", ROWS):
        few = pyro.sample("few", dist.Bernoulli(0.5))
        kind = pyro.sample("kind", dist.OneHotCategorical(torch.ones(2)))
        count = pyro.sample("count", dist.Poisson(2.0))
        bits = pyro.sample("bits", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(few + kind[..., 0] + count + bits.sum(-1), 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("rows", ROWS):
        pyro.sample("few", dist.Bernoulli(logits=pyro.param("few_logits", torch.zeros(ROWS))))
        pyro.sample("kind", dist.OneHotCategorical(logits=pyro.param("kind_logits", torch.zeros(ROWS, 2))))
        pyro.sample("count", dist.Poisson(pyro.param("rate", torch.ones(ROWS))))
        pyro.sample("bits", dist.Bernoulli(logits=pyro.param("bit_logits", torch.zeros(4))).to_event(1))


@pytest.fixture(scope="module")
def graph() -> sgc.StochasticGraph:
    pyro.clear_param_store()
    return sgc.capture(model, guide, torch.zeros(ROWS))


def advice(graph: sgc.StochasticGraph, *rows: SiteVariance, total: float = 10.0) -> tuple[str, ...]:
    return GradientVariance(100, total, None, None, rows, (), graph).advice()


def without_baseline(name: str, variance: float = 6.0, average: float | None = 1.0) -> SiteVariance:
    return SiteVariance(name, variance, None, None, with_decaying_average=average)


def test_the_option_that_asks_for_a_baseline_is_written_out(graph: sgc.StochasticGraph) -> None:
    (text,) = advice(graph, without_baseline("count"))
    assert text.startswith("count (") and "60% of the variance, without a baseline: give one, " in text
    assert "estimators={'count': 'decaying average'}, or an nn_baseline, or with num_particles=2" in text


def test_sites_alike_are_named_together_and_many_by_a_pattern(graph: sgc.StochasticGraph) -> None:
    (text,) = advice(graph, without_baseline("few", 3.0), without_baseline("kind", 3.0))
    assert "estimators={'few': 'decaying average', 'kind': 'decaying average'}" in text
    pyro.clear_param_store()
    chain = sgc.capture(_chain, _chain_guide)
    (text,) = advice(chain, *(without_baseline(f"z_{t}", 2.0) for t in range(5)))
    assert "and 2 more: 100% of the variance" in text and "estimators={'*': 'decaying average'}" in text


def _chain() -> None:
    for t in range(5):
        pyro.sample(f"z_{t}", dist.Poisson(1.0))


def _chain_guide() -> None:
    for t in range(5):
        pyro.sample(f"z_{t}", dist.Poisson(pyro.param("rates", torch.ones(5))[t]))


@pytest.mark.parametrize(("name", "few"), [("few", True), ("kind", True), ("count", False), ("bits", False)])
def test_what_can_be_summed_over_is_said_of_sites_of_few_values(
    name: str, few: bool, graph: sgc.StochasticGraph
) -> None:
    """Not of counts, nor of many bits in one site, whose joint values nobody enumerates."""
    (text,) = advice(graph, without_baseline(name))
    assert text.endswith(f"; or sum over its values, estimators={{{name!r}: 'enumerate'}}") == few


def test_a_better_baseline_is_the_one_that_is_named(graph: sgc.StochasticGraph) -> None:
    row = SiteVariance("count", 6.0, 20.0, None, with_decaying_average=8.0, with_leave_one_out=3.0)
    (text,) = advice(graph, row)
    assert text.endswith("with baselines that help; estimators={'count': 'leave-one-out'} would help more")
    (text,) = advice(graph, SiteVariance("count", 6.0, 10.1, None, with_decaying_average=4.0))
    assert "do next to nothing" in text and text.endswith("or take estimators={'count': 'decaying average'}")
    (text,) = advice(graph, without_baseline("count", average=9.9))
    assert "an average of its costs would be of little use" in text and "estimators" not in text


def test_where_no_score_function_is_to_blame_particles_are_advised(graph: sgc.StochasticGraph) -> None:
    rest = SiteVariance(OTHER_TERMS, 9.5, None, None)
    assert advice(graph, rest, without_baseline("few", 0.5)) == (
        f"{OTHER_TERMS}: more particles or a larger minibatch divide it; baselines leave it as it is",
    )
    assert advice(graph, SiteVariance(OTHER_TERMS, 1.0, None, None), without_baseline("count", 9.0))[1:] == ()
    assert advice(graph, rest) == ()  # a pathwise program: nobody thinks of baselines there
