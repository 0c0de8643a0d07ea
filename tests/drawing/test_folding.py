"""What is repeated is folded, nothing is lost by it, and what is not repeated stays as it is."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

import sgc
from sgc.graph.cost_sums import PartialSumNode
from sgc.graph.drawing.drawn_graph import drawn_graph
from sgc.graph.drawing.folded_names import FoldedNames
from sgc.graph.drawing.folding import FEWEST, FoldedEdge, Folding, fold
from sgc.graph.drawing.relation import relation_of
from sgc.graph.program import SiteKind
from tests.drawing.models import MODELS, captured, six_steps
from tests.programs import discrete_chain, local_switches

Edges = Sequence[tuple[str, str]]


def folded(nodes: Sequence[str], edges: Edges, **signatures: str) -> Folding:
    return fold({node: signatures.get(node, "") for node in nodes}, edges, {})


def shown(folding: Folding) -> set[str]:
    """Each folded node by its name and range."""
    names = FoldedNames(folding)
    return {", ".join(filter(None, (names.name(node), names.ranges(node)))) for node in folding.nodes}


def arrows(folding: Folding) -> set[str]:
    names = FoldedNames(folding)
    return {
        f"{names.name(edge.source)} -> {names.name(edge.target)}"
        + (f" ({label})" if (label := names.on_edge(edge.source, edge.target, edge.relation)) else "")
        for edge in folding.edges
    }


def told(edge: FoldedEdge) -> set[tuple[str, str]]:
    """The edges that the description of a folded edge gives."""
    relation = edge.relation
    return {
        (source, target)
        for source, own in zip(edge.source.members, edge.source.numbers, strict=True)
        for target, theirs in zip(edge.target.members, edge.target.numbers, strict=True)
        if all(link.holds(own[link.source], theirs[link.target]) for link in relation.links)
        and all(own[place] in values for place, values in relation.sources.items())
        and all(theirs[place] in values for place, values in relation.targets.items())
    }


def check_laws(nodes: Sequence[str], edges: Edges, folding: Folding) -> None:
    """Each node is in one folded node, each edge in one folded edge, of the folded nodes that hold its ends."""
    assert sorted(member for node in folding.nodes for member in node.members) == sorted(nodes)
    assert sorted(edge for folded_edge in folding.edges for edge in folded_edge.edges) == sorted(set(edges))
    for folded_edge in folding.edges:
        for source, target in folded_edge.edges:
            assert folding.of[source] is folded_edge.source and folding.of[target] is folded_edge.target
        assert not folded_edge.relation.exact or told(folded_edge) == {*folded_edge.edges}
    assert len({(id(edge.source), id(edge.target)) for edge in folding.edges}) == len(folding.edges)
    assert all(node.is_single or len(node.members) >= FEWEST for node in folding.nodes)


STEPS = range(6)
CHAIN = [(f"z_{t}", f"z_{t + 1}") for t in range(5)]


def test_a_chain_is_one_node_with_an_edge_to_the_next_step() -> None:
    nodes = [f"z_{t}" for t in STEPS] + [f"x_{t}" for t in STEPS]
    folding = folded(nodes, [*CHAIN, *((f"z_{t}", f"x_{t}") for t in STEPS)])
    assert shown(folding) == {"z_t, t = 0 … 5", "x_t, t = 0 … 5"}
    assert arrows(folding) == {"z_t -> z_t (t → t+1)", "z_t -> x_t"}


def test_a_step_that_has_another_parent_is_told_apart() -> None:
    edges = [*CHAIN, ("init", "z_0"), *(("trans", f"z_{t}") for t in range(1, 6))]
    folding = folded([*(f"z_{t}" for t in STEPS), "init", "trans"], edges)
    assert shown(folding) == {"init", "trans", "z_0", "z_t, t = 1 … 5"}
    assert arrows(folding) == {"init -> z_0", "trans -> z_t", "z_0 -> z_t (t = 1)", "z_t -> z_t (t → t+1)"}


def test_a_step_that_lacks_a_parent_that_is_there_is_told_apart() -> None:
    edges = [edge for edge in CHAIN if edge != ("z_2", "z_3")]
    assert shown(folded([f"z_{t}" for t in range(8)], [*edges, ("z_5", "z_6"), ("z_6", "z_7")])) == {
        "z_3",
        "z_t, t = 0 … 2, 4 … 7",
    }


def test_two_steps_back_all_steps_before_and_all_after() -> None:
    nodes = [f"z_{t}" for t in STEPS]
    two = [(f"z_{s}", f"z_{t}") for t in STEPS for s in (t - 1, t - 2) if s >= 0]
    assert arrows(folded(nodes, two)) == {"z_t -> z_t (t → t+1, t+2)"}
    five = [(f"z_{s}", f"z_{t}") for t in STEPS for s in range(t - 4, t) if s >= 0]
    assert arrows(
        folded([*nodes, "z_6", "z_7"], [*five, *((f"z_{s}", f"z_{t}") for t in (6, 7) for s in range(t - 4, t))])
    ) == {"z_t -> z_t (t → t+1 … t+4)"}
    and_next = [(f"c_{s}", f"z_{t}") for t in STEPS for s in range(t - 1, 6) if s >= 0]
    assert arrows(folded([*nodes, *(f"c_{t}" for t in STEPS)], and_next)) == {"c_t -> z_t (each t' ≥ t-1)"}
    before = [(f"z_{s}", f"z_{t}") for t in STEPS for s in range(t)]
    assert arrows(folded(nodes, before)) == {"z_t -> z_t (each t' < t)"}
    after = [(f"c_{s}", f"z_{t}") for t in STEPS for s in range(t, 6)]
    assert arrows(folded([*nodes, *(f"c_{t}" for t in STEPS)], after)) == {"c_t -> z_t (each t' ≥ t)"}
    fewer = [edge for edge in after if edge[0] != "c_0"]
    assert arrows(folded([*nodes, *(f"c_{t}" for t in range(1, 6))], fewer)) == {"c_t -> z_t (each t' ≥ t)"}


def test_what_all_steps_share_may_have_a_number_in_its_name() -> None:
    nodes = [*(f"z_{t}" for t in STEPS), "layer2.weight", "layer1.weight"]
    edges = [(f"layer{k}.weight", f"z_{t}") for t in STEPS for k in (1, 2)]
    assert shown(folded(nodes, edges)) == {"layer1.weight", "layer2.weight", "z_i, i = 0 … 5"}
    layers = [f"layer{k}.weight" for k in range(5)]
    all_to_all = [(layer, f"z_{t}") for t in STEPS for layer in layers]
    folding = folded([*layers, *nodes[:6]], all_to_all)
    assert shown(folding) == {"layer{i}.weight, i = 0 … 4", "z_j, j = 0 … 5"}
    assert arrows(folding) == {"layer{i}.weight -> z_j"}


def test_two_loops_one_within_the_other() -> None:
    places = [(t, i) for t in range(4) for i in range(3)]
    nodes = [f"z_{t}_{i}" for t, i in places] + [f"x_{t}" for t in range(4)]
    along = [(f"z_{t}_{i}", f"z_{t + 1}_{i}") for t, i in places if t < 3]
    folding = folded(nodes, [*along, *((f"z_{t}_{i}", f"x_{t}") for t, i in places)])
    assert shown(folding) == {"z_t_i, t = 0 … 3, i = 0 … 2", "x_t, t = 0 … 3"}
    assert arrows(folding) == {"z_t_i -> z_t_i (t → t+1)", "z_t_i -> x_t"}
    mixed = [(f"z_{t}_{i}", f"z_{t + 1}_{j}") for t, i in places if t < 3 for j in range(3)]
    assert len(folded(nodes[:12], mixed).nodes) == 1


def test_what_is_not_alike_is_not_folded() -> None:
    nodes = [f"z_{t}" for t in range(7)]
    tree = [(f"z_{(t - 1) // 2}", f"z_{t}") for t in range(1, 7)]
    assert len(folded(nodes, tree).nodes) == 7  # parents whose numbers are no constant away
    assert len(folded(nodes[:3], CHAIN[:2]).nodes) == 3  # too few
    other = folded(nodes[:6], CHAIN, z_3="another distribution")
    assert "z_3" in shown(other) and len(other.nodes) == 2
    assert len(folded(["z_1", "z_01", "z_2", "z_3", "z_4"], []).nodes) == 5  # two nodes with one number
    assert shown(folded([f"z_0{t}" for t in range(5)], [])) == {"z_i, i = 0 … 4"}
    assert len(folded([f"z_{t}_{i}" for t in range(2) for i in range(3)], []).nodes) == 6  # two steps, three places
    assert len(folded(["z", "y", "x", "w", "v"], []).nodes) == 5


def test_inputs_are_alike_if_they_go_to_the_same_nodes() -> None:
    inputs = [f"w_{k}" for k in range(8)]
    edges = [(name, "x" if name in inputs[:4] else "y") for name in inputs]
    assert shown(folded([*inputs, "x", "y"], edges)) == {"w_i, i = 0 … 3", "w_j, j = 4 … 7", "x", "y"}
    per_step = [(f"w_{t}", f"z_{t}") for t in STEPS]
    assert shown(folded([*inputs[:6], *(f"z_{t}" for t in STEPS)], [*per_step, *CHAIN])) == {
        "w_t, t = 0 … 5",
        "z_t, t = 0 … 5",
    }


def test_the_ends_of_edges_need_not_be_in_all_steps() -> None:
    nodes = [*(f"z_{t}" for t in range(8)), *(f"x_{t}" for t in range(0, 8, 2)), "p", "y"]
    edges = [*((f"z_{t}", f"x_{t}") for t in range(0, 8, 2)), ("z_5", "y"), *(("p", f"z_{t}") for t in range(8))]
    folding = folded(nodes, edges)
    assert shown(folding) == {"z_i, i = 0 … 7", "x_i, i = 0, 2 … 6", "p", "y"}
    assert arrows(folding) == {"p -> z_i", "z_i -> x_i", "z_i -> y (i = 5)"}


def test_an_inexact_relation_says_so() -> None:
    relation = relation_of([(0,), (1,), (2,)], [(0,), (1,), (2,)], {((0,), (1,)), ((2,), (0,)), ((1,), (1,))})
    assert not relation.exact


@pytest.mark.parametrize("seed", range(40))
def test_the_laws_on_random_graphs(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [f"{letter}_{t}" for letter in "abc" for t in range(rng.randint(1, 9))] + ["p", "q2"]
    order = rng.sample(nodes, len(nodes))
    density = rng.choice([0.05, 0.3, 0.9])
    edges = [(one, two) for at, one in enumerate(order) for two in order[at + 1 :] if rng.random() < density]
    signatures = {node: rng.choice("xy") if rng.random() < 0.2 else "x" for node in nodes}
    folding = fold(signatures, edges, {})
    check_laws(nodes, edges, folding)
    for node in folding.nodes:
        assert len({signatures[member] for member in node.members}) == 1
    check_laws(nodes, edges, fold(signatures, edges, {}, fewest=None))
    assert len(fold(signatures, edges, {}, fewest=None).nodes) == len(nodes)


@pytest.mark.parametrize("name", MODELS)
def test_the_laws_on_programs(name: str) -> None:
    """Each node of the graph is drawn once, but for partial sums; and each edge, but for those within what is one."""
    graph = captured(name)
    drawn = drawn_graph(graph)
    sums = {node.key for node in graph.of_type(PartialSumNode)}
    assert sorted(key for members in drawn.members.values() for key in members) == sorted(set(graph) - sums)
    folding = drawn.fold()
    check_laws(list(drawn.members), list(drawn.edges), folding)
    owner = {key: main for main, members in drawn.members.items() for key in members}
    observed = {f"log p({site})": site for site in graph.sites(SiteKind.OBSERVED)}
    for source, target in graph.edges:
        if source not in sums and target not in sums and owner[source] != owner[target]:
            through = observed.get(target, "")
            direct = (owner[source], owner[target]) in drawn.edges
            assert direct or {(source, through), (through, target)} <= drawn.edges.keys(), (source, target)
    for site in graph.sites(SiteKind.LATENT):
        into = {source for source, target in drawn.edges if target == f"score_term({site})"}
        if into:
            assert graph.downstream_costs(site) <= into


def test_programs_without_repetition_stay_as_they_are() -> None:
    for program, arguments in ((local_switches(), (torch.zeros(3),)), (discrete_chain(3), ())):
        graph = sgc.capture(*program, *arguments)
        assert all(node.is_single for node in drawn_graph(graph).fold().nodes)
        assert graph.to_text() == graph.to_text(unfold=True)


def test_steps_do_not_make_the_folded_graph_larger() -> None:
    few = len(drawn_graph(six_steps()).fold().nodes)
    assert len(drawn_graph(captured("hidden_markov_model")).fold().nodes) == few < 30
