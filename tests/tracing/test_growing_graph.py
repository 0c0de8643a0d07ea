"""What a value depends on is asked of a graph under construction many times, and each node is looked at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from torch import Tensor, fx

import sgc
from sgc.graph.effects import DataFlow, ancestors, dependencies
from sgc.tracing import tracer
from sgc.tracing.values.slices import GrowingGraph


def sequential_plates(data: Tensor) -> None:
    for i in pyro.plate("rows", 3):
        for j in pyro.plate(f"columns_{i}", 2):
            pyro.sample(f"x_{i}_{j}", dist.Normal(data[0], 1.0), obs=data[i])


def written_between_reads(data: Tensor) -> None:
    counts = torch.zeros(2)
    for value in data:
        counts[0] += value.abs()
        if counts.sum() > 1:
            counts.view(-1)[1] = value
        pyro.sample(f"x_{float(counts[1])}_{float(counts[0])}", dist.Normal(counts[0], 1.0), obs=counts[1])


def undone_between_reads(data: Tensor) -> None:
    """The sampler branches on what it draws, and the nodes of that attempt are erased."""
    scale = data.abs().sum()
    for i in range(3):
        if scale > i:
            with pyro.poutine.block():
                pyro.sample(f"r_{i}", RejectionGamma(scale, torch.tensor(2.0)))
        scale += float(data[i])
    pyro.sample("x", dist.Normal(scale, 1.0), obs=data[0])


def under_autocast(data: Tensor) -> None:
    for i in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = data.outer(data) @ data
        if product.sum() > 0:
            pyro.sample(f"x_{i}", dist.Normal(product.float().sum(), 1.0), obs=data[i])


PROGRAMS = [sequential_plates, written_between_reads, undone_between_reads, under_autocast]


def guide(data: Tensor) -> None:
    pyro.param("w", torch.tensor(0.5))


@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_it_gives_what_the_whole_graph_gives(model: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    needed = GrowingGraph.needed

    def compared(self: GrowingGraph, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        nodes = list(nodes)
        answer = needed(self, nodes)
        graph = tracer.current_tracer().graph
        of_whole_graph = ancestors(nodes, dependencies(graph))
        assert answer == [node for node in graph.nodes if node in of_whole_graph]
        asked.append(len(answer))
        return answer

    monkeypatch.setattr(GrowingGraph, "needed", compared)
    data = torch.tensor([0.9, 0.8, 0.7])
    loss_module = sgc.compile(model, guide, backend="eager").initialize(data)
    assert len(asked) > 1
    assert loss_module.verify(data)


def test_reads_of_a_longer_program_look_at_no_more_nodes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[fx.Node] = []
    add = DataFlow.add

    def counted(self: DataFlow, node: fx.Node) -> None:
        looked_at.append(node)
        add(self, node)

    def model(data: Tensor) -> None:
        for i in pyro.plate("points", len(data)):
            pyro.sample(f"x_{i}", dist.Normal(data[i], 1.0), obs=data[i])

    monkeypatch.setattr(DataFlow, "add", counted)
    numbers = []
    for points in (15, 30):
        looked_at.clear()
        sgc.compile(model, guide, backend="eager").initialize(torch.zeros(points))
        numbers.append(len(looked_at))
    assert numbers[1] < 2.1 * numbers[0]


def test_nothing_is_kept_after_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[GrowingGraph]] = []
    needed = GrowingGraph.needed

    def noted(self: GrowingGraph, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        kept.append(weakref.ref(self))
        return needed(self, nodes)

    monkeypatch.setattr(GrowingGraph, "needed", noted)
    loss_module = sgc.compile(sequential_plates, guide, backend="eager").initialize(torch.ones(3))
    gc.collect()
    assert kept and all(reference() is None for reference in kept)
    assert loss_module.verify(torch.ones(3))
