"""The graph answers questions, prints, and works with networkx."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import networkx as nx
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
from sgc.graph.nodes import CostNode, Estimator, InputNode, SiteNode
from sgc.graph.program import InputKind, SiteKind
from tests.programs import discrete_chain, local_switches

X = torch.tensor([0.1, 0.9, -0.4])


@pytest.fixture
def graph() -> sgc.StochasticGraph:
    infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_value": torch.zeros(3)}}
    return sgc.capture(*local_switches(infer), X)


def test_queries(graph: sgc.StochasticGraph) -> None:
    assert graph.sites() == ("loc", "data", "z", "x")
    assert graph.sites(SiteKind.LATENT) == ("loc", "z")
    assert graph.costs() == ("log p(loc)", "log p(z)", "log p(x)", "-log q(loc)", "-log q(z)")
    assert graph.provenance("log p(x)") == {"loc", "z"}
    assert graph.provenance("log p(x)", reparameterized=False) == {"z"}
    assert graph.provenance("z") == {"z"}
    assert graph.downstream_costs("z") == {"log p(z)", "log p(x)", "-log q(z)"}
    assert graph.estimator("loc") is Estimator.PATHWISE
    assert graph.estimator("z") is Estimator.SCORE_FUNCTION
    baseline = graph.baseline("z")
    assert baseline is not None and baseline.shape == (3,) and baseline.average and baseline.learned
    assert graph.baseline("loc") is None
    with pytest.raises(KeyError, match="the latent sites are: loc, z"):
        graph.estimator("x")
    with pytest.raises(KeyError):
        graph.provenance("nothing")


def test_payloads(graph: sgc.StochasticGraph) -> None:
    site = graph.payload("z")
    assert isinstance(site, SiteNode)
    assert site.distribution == "Bernoulli" and site.shape == (3,) and not site.has_rsample
    assert [plate.name for plate in site.plates] == ["data"]
    assert site.source is not None and 'pyro.sample("z"' in site.source.text
    cost = graph.payload("-log q(z)")
    assert isinstance(cost, CostNode) and cost.sign == -1
    parameter = graph.payload("param q")
    assert isinstance(parameter, InputNode) and parameter.role is InputKind.PARAMETER and parameter.requires_grad
    with pytest.raises(dataclasses.FrozenInstanceError):
        site.key = "other"  # type: ignore[misc]


def test_edges_are_the_data_flow(graph: sgc.StochasticGraph) -> None:
    assert set(graph.predecessors("z")) == {"param q"}
    assert set(graph.predecessors("log p(x)")) == {"loc", "z", "data args[0]"}
    assert set(graph.successors("param loc_loc")) == {"loc", "-log q(loc)", "entropy_term(loc)"}
    assert nx.has_path(graph, "param q", "surrogate")


def test_text_explains_the_gradient(graph: sgc.StochasticGraph) -> None:
    text = str(graph)
    assert "z: latent Bernoulli, [3], in data" in text
    assert "times: log p(z) + log p(x) - log q(z), as [3]" in text
    assert "minus the baseline: decaying average (beta 0.9) + learned" in text
    assert "gradient: pathwise" in text


def test_networkx_algorithms_writers_and_copies(graph: sgc.StochasticGraph, tmp_path: Path) -> None:
    order = list(nx.topological_sort(graph))
    assert order.index("z") < order.index("log p(x)") < order.index("surrogate")
    nx.write_graphml(graph, tmp_path / "graph.graphml")
    nx.write_gml(graph, tmp_path / "graph.gml")
    nx.write_gexf(graph, tmp_path / "graph.gexf")
    assert set(nx.read_graphml(tmp_path / "graph.graphml")) == set(graph)
    assert nx.node_link_data(graph, edges="edges")["nodes"]
    copied = graph.copy()
    assert copied.downstream_costs("z") == graph.downstream_costs("z")
    assert sgc.StochasticGraph(graph).estimator("z") is Estimator.SCORE_FUNCTION
    part = graph.subgraph(nx.ancestors(graph, "z") | {"z"})
    assert set(part) == {"z", "param q"}
    assert graph.nodes["z"]["estimator"] == "score function"


def test_a_chain_takes_a_number_of_additions_linear_in_its_length() -> None:
    """Along a chain the downstream costs are nested sums; each is built on the next."""

    def additions(length: int) -> int:
        pyro.clear_param_store()
        module = sgc.compile(*discrete_chain(length), backend="eager").initialize()
        return sum(node.target is torch.add for node in module.module.graph.nodes)

    ten, twenty, forty = additions(10), additions(20), additions(40)
    assert forty - twenty == 2 * (twenty - ten)


def test_sequential_plates_and_plates_of_the_same_name() -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("rows", 2):
            with pyro.plate(f"cols_{i}", 3):
                z = pyro.sample(f"z_{i}", dist.Bernoulli(0.5))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.2))
        for i in pyro.plate("rows", 2):
            with pyro.plate(f"cols_{i}", 3):
                pyro.sample(f"z_{i}", dist.Bernoulli(logits=q))

    graph = sgc.capture(model, guide, torch.zeros(2, 3))
    assert graph.downstream_costs("z_0") == {"log p(z_0)", "log p(x_0)", "-log q(z_0)"}
    node = graph.downstream_cost("z_0")
    assert node is not None and node.shape == (3,)


def test_costs_of_inner_plates_are_summed_to_the_sites_plates() -> None:
    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(0.5))
        with pyro.plate("outer", 2, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * g))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("g", dist.Bernoulli(logits=pyro.param("qg", torch.tensor(0.1))))
        with pyro.plate("outer", 2, dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("qz", torch.zeros(2))))

    graph = sgc.capture(model, guide, torch.zeros(3, 2))
    z, g = graph.downstream_cost("z"), graph.downstream_cost("g")
    assert z is not None and z.shape == (2,) and [term.dims for term in z.terms] == [(), (-2,)]
    assert g is not None and g.shape == () and [term.dims for term in g.terms] == [(), (-1,)]
    assert "log p(x)" not in graph.downstream_costs("g")
