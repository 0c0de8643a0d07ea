"""Each law of the graph catches the sabotage that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import sgc
from sgc.errors import GraphError
from sgc.graph.cost_sums import DownstreamCostNode, PartialSumNode
from sgc.graph.derived_nodes import DetachNode, MeanNode
from sgc.graph.nodes import BaselineNode, CostNode, SiteNode
from sgc.graph.program import Particles
from sgc.graph.verify import verify
from sgc.passes.baselines.leave_one_out import LeaveOneOutNode
from sgc.passes.estimators.score_function import ScoreTermNode
from sgc.passes.objectives.bound_nodes import BoundSurrogateNode, LogWeightNode, OthersBoundsNode
from sgc.passes.objectives.closed_forms import DivergenceNode
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


@pytest.fixture
def over_particles() -> sgc.StochasticGraph:
    program = local_switches({"baseline": {"use_leave_one_out": True}})
    module = sgc.compile(*program, backend="eager", num_particles=3, vectorize_particles=True)
    return module.initialize(torch.tensor([0.1, 0.9, -0.4])).graph.copy()


def left_out(graph: sgc.StochasticGraph) -> LeaveOneOutNode:
    node = graph.baseline("z")
    assert isinstance(node, LeaveOneOutNode)
    return node


def leave_one_out_of_one(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(left_out(graph), particles=Particles()))


def leave_the_particles_in_other_calls(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(left_out(graph), dim=None, particles=Particles(calls=3)))


def leave_it_out_of_others_than_the_objective_has(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(left_out(graph), particles=replace(left_out(graph).particles, in_plate=4)))


def lose_the_dim_of_the_particles(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(left_out(graph), dim=None))


def take_another_dim(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(left_out(graph), dim=-3))


def let_it_see_its_own_particle(graph: sgc.StochasticGraph) -> None:
    graph.remove_edge("downstream(z)", "baseline(z)")
    graph.add_edge("downstream(z)", "baseline(z)")


def cross_particles_elsewhere(graph: sgc.StochasticGraph) -> None:
    graph.remove_edge("z", "log p(x)")
    graph.add_edge_across_particles("z", "log p(x)")


def multiply_the_score_by_the_whole_cost(graph: sgc.StochasticGraph) -> None:
    graph.add(DetachNode("detached downstream(z)", (3, 3), "downstream(z)"), ["downstream(z)"])
    term = graph.payload("score_term(z)")
    assert isinstance(term, ScoreTermNode)
    operands = term.operands[0], "detached downstream(z)"
    graph.remove_edge(term.operands[1], term.key)
    graph.add(replace(term, operands=operands), operands)


def lose_the_score_function(graph: sgc.StochasticGraph) -> None:
    graph.remove_node("score_function(z)")


def average_over_other_particles(graph: sgc.StochasticGraph) -> None:
    mean = graph.payload("mean surrogate")
    assert isinstance(mean, MeanNode)
    graph.replace(replace(mean, particles=Particles(runs=2)))


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (leave_one_out_of_one, "has no other particles at hand"),
        (leave_the_particles_in_other_calls, "has no other particles at hand"),
        (leave_it_out_of_others_than_the_objective_has, "is of other particles than the objective"),
        (lose_the_dim_of_the_particles, "does not say where the particles are"),
        (take_another_dim, r"has shape \(3, 3\), without the particles in dim -3"),
        (let_it_see_its_own_particle, "'baseline\\(z\\)' may not depend on its own particle's 'downstream\\(z\\)'"),
        (let_it_see_its_own_particle, "'baseline\\(z\\)' depends on the sample of its own site"),
        (cross_particles_elsewhere, r"'log p\(x\)' may not depend on other particles' 'z'"),
        (multiply_the_score_by_the_whole_cost, "not of the site's score function and 'detached centred_cost"),
        (lose_the_score_function, "the site 'z' has no score function, which its estimator needs"),
        (average_over_other_particles, "are not of the same particles"),
    ],
)
def test_sabotage_of_particles_and_objective_is_caught(
    over_particles: sgc.StochasticGraph, sabotage: Callable[[sgc.StochasticGraph], None], complaint: str
) -> None:
    verify(over_particles)
    sabotage(over_particles)
    with pytest.raises(GraphError, match=complaint):
        verify(over_particles)


def test_all_breaches_are_reported_together(graph: sgc.StochasticGraph) -> None:
    let_the_baseline_see_the_sample(graph)
    add_a_bare_node(graph)
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert "stray" in str(caught.value) and "sample of its own site" in str(caught.value)


@pytest.fixture
def in_closed_form() -> sgc.StochasticGraph:
    return sgc.compile(*normals(), backend="eager", objective="TraceMeanField_ELBO").initialize().graph.copy()


def normals() -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        a = pyro.sample("a", dist.Normal(pyro.param("q", torch.tensor(0.2)), 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    return model, guide


def deny_that_it_is_exact(graph: sgc.StochasticGraph) -> None:
    node = graph.payload("-KL(q(b) || p(b))")
    assert isinstance(node, DivergenceNode)
    graph.replace(replace(node, is_exact=False))


def let_a_closed_form_depend_on_its_site(graph: sgc.StochasticGraph) -> None:
    graph.add_edge("b", "-KL(q(b) || p(b))")


def keep_a_density_beside_its_closed_form(graph: sgc.StochasticGraph) -> None:
    cost = graph.payload("log p(x)")
    assert isinstance(cost, CostNode)
    graph.add(replace(cost, key="log p(b)"), tuple(graph.predecessors(cost.key)))


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (deny_that_it_is_exact, "says that it depends on the sample of its own site, and the graph does not"),
        (let_a_closed_form_depend_on_its_site, "says that it does not depend on the sample of its own site"),
        (let_a_closed_form_depend_on_its_site, r"depends on \['a'\] in the program but on \['a', 'b'\] in the graph"),
        (keep_a_density_beside_its_closed_form, r"stands for 'log p\(b\)', which is a cost beside it"),
    ],
)
def test_sabotage_of_closed_forms_is_caught(
    in_closed_form: sgc.StochasticGraph, sabotage: Callable[[sgc.StochasticGraph], None], complaint: str
) -> None:
    verify(in_closed_form)
    sabotage(in_closed_form)
    with pytest.raises(GraphError, match=complaint):
        verify(in_closed_form)


@pytest.fixture
def of_a_bound() -> sgc.StochasticGraph:
    module = sgc.compile(*local_switches(), backend="eager", objective="iwae", num_particles=3)
    return module.initialize(torch.tensor([0.1, 0.9, -0.4])).graph.copy()


def leave_a_cost_out_of_the_weight(graph: sgc.StochasticGraph) -> None:
    node = graph.payload("log_weight")
    assert isinstance(node, LogWeightNode)
    graph.remove_edge(node.terms[0][0], node.key)
    graph.replace(replace(node, terms=node.terms[1:]))


def others(graph: sgc.StochasticGraph) -> OthersBoundsNode:
    node = graph.payload("bounds_of_others")
    assert isinstance(node, OthersBoundsNode)
    return node


def bound_without_others(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(others(graph), particles=Particles()))


def bound_of_other_particles(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(others(graph), particles=Particles(runs=5)))


def let_the_others_bound_see_its_own_particle(graph: sgc.StochasticGraph) -> None:
    graph.remove_edge("log_weight", "bounds_of_others")
    graph.add_edge("log_weight", "bounds_of_others")


def lose_the_score_term_of_a_bound(graph: sgc.StochasticGraph) -> None:
    surrogate = graph.payload("surrogate")
    assert isinstance(surrogate, BoundSurrogateNode)
    graph.remove_edge("score_term(z)", "surrogate")
    graph.replace(replace(surrogate, terms=()))


def sum_other_particles(graph: sgc.StochasticGraph) -> None:
    surrogate = graph.payload("surrogate")
    assert isinstance(surrogate, BoundSurrogateNode)
    graph.replace(replace(surrogate, particles=Particles(runs=2)))


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (leave_a_cost_out_of_the_weight, "'log_weight' is not the sum of all costs"),
        (bound_without_others, "'bounds_of_others' has no other particles at hand"),
        (bound_of_other_particles, "'bounds_of_others' is of other particles than the objective"),
        (let_the_others_bound_see_its_own_particle, "may not depend on its own particle's 'log_weight'"),
        (lose_the_score_term_of_a_bound, "the scored site 'z' has no score term"),
        (sum_other_particles, "'surrogate' and others are not of the same particles"),
    ],
)
def test_sabotage_of_bounds_is_caught(
    of_a_bound: sgc.StochasticGraph, sabotage: Callable[[sgc.StochasticGraph], None], complaint: str
) -> None:
    verify(of_a_bound)
    sabotage(of_a_bound)
    with pytest.raises(GraphError, match=complaint):
        verify(of_a_bound)
