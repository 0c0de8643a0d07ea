"""Each law of the graph catches the sabotage that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import sgc
from sgc.errors import GraphError
from sgc.graph.nodes import BaselineNode, DownstreamCostNode, PartialSumNode, SiteNode
from sgc.graph.verify import verify
from tests.programs import local_switches


@pytest.fixture
def graph() -> sgc.StochasticGraph:
    infer = {"baseline": {"baseline_value": torch.zeros(3)}}
    return sgc.capture(*local_switches(infer), torch.tensor([0.1, 0.9, -0.4])).copy()


def forget_an_edge(graph: sgc.StochasticGraph) -> None:
    graph.remove_edge("z", "log p(x)")


def invent_an_edge(graph: sgc.StochasticGraph) -> None:
    graph.add_edge("z", "log p(loc)")


def close_a_cycle(graph: sgc.StochasticGraph) -> None:
    graph.add_edge("surrogate", "param q")


def drop_a_downstream_cost(graph: sgc.StochasticGraph) -> None:
    node = graph.downstream_cost("z")
    assert node is not None
    partial = graph.payload(node.terms[0].addend)
    assert isinstance(partial, PartialSumNode)
    lost = partial.addends[-1]
    graph.replace(replace(partial, addends=partial.addends[:-1]))
    graph.remove_edge(lost, partial.key)


def count_a_cost_twice(graph: sgc.StochasticGraph) -> None:
    node = graph.downstream_cost("z")
    assert node is not None
    graph.replace(replace(node, terms=(*node.terms, *node.terms)))


def let_the_baseline_see_the_sample(graph: sgc.StochasticGraph) -> None:
    graph.add_edge("z", "baseline_input(z)")


def give_the_baseline_another_shape(graph: sgc.StochasticGraph) -> None:
    node = graph.baseline("z")
    assert isinstance(node, BaselineNode)
    graph.replace(replace(node, shape=(7,)))


def lose_the_score_term(graph: sgc.StochasticGraph) -> None:
    total = graph.payload("surrogate")
    kept = tuple(key for key in total.operands if key != "score_term(z)")  # type: ignore[attr-defined]
    graph.replace(replace(total, operands=kept))  # type: ignore[call-arg]
    graph.remove_node("score_term(z)")


def score_a_pathwise_site(graph: sgc.StochasticGraph) -> None:
    site = graph.payload("z")
    assert isinstance(site, SiteNode)
    pathwise = graph.payload("loc")
    assert isinstance(pathwise, SiteNode)
    graph.replace(replace(site, estimator=pathwise.estimator))


def let_a_cost_feed_a_site(graph: sgc.StochasticGraph) -> None:
    graph.add_edge("log p(loc)", "x")


def add_a_bare_node(graph: sgc.StochasticGraph) -> None:
    graph.add_node("stray")


def contradict_the_operands(graph: sgc.StochasticGraph) -> None:
    node = graph.downstream_cost("z")
    assert isinstance(node, DownstreamCostNode)
    graph.remove_edge(node.terms[0].addend, node.key)


def misshape_a_sum(graph: sgc.StochasticGraph) -> None:
    partial = next(graph.of_type(PartialSumNode))
    graph.replace(replace(partial, shape=(5,)))


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (forget_an_edge, r"'log p\(x\)' depends on \['loc', 'z'\] in the program but on \['loc'\] in the graph"),
        (invent_an_edge, r"'log p\(loc\)' depends on \['loc'\] in the program"),
        (close_a_cycle, "there is a cycle"),
        (drop_a_downstream_cost, "is not the sum of its site's downstream costs: missing"),
        (count_a_cost_twice, "counts a cost twice"),
        (let_the_baseline_see_the_sample, "depends on the sample of its own site"),
        (give_the_baseline_another_shape, r"has shape \(7,\), its downstream cost \(3,\)"),
        (lose_the_score_term, "the scored site 'z' has no score term"),
        (score_a_pathwise_site, "is not scored and yet has a score term"),
        (let_a_cost_feed_a_site, "a site node may not depend on a cost node"),
        (add_a_bare_node, "'stray' has no payload"),
        (contradict_the_operands, "computes from .* but its parents are"),
        (misshape_a_sum, r"has shape \(5,\), its addends"),
    ],
)
def test_sabotage_is_caught(
    graph: sgc.StochasticGraph, sabotage: Callable[[sgc.StochasticGraph], None], complaint: str
) -> None:
    verify(graph)
    sabotage(graph)
    with pytest.raises(GraphError, match=complaint):
        verify(graph)


def test_all_breaches_are_reported_together(graph: sgc.StochasticGraph) -> None:
    let_the_baseline_see_the_sample(graph)
    add_a_bare_node(graph)
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert "stray" in str(caught.value) and "sample of its own site" in str(caught.value)
