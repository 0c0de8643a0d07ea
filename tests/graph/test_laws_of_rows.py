"""Sabotage of an average for each datum is caught: its rows are known, depend on no sample, and fit the plate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import sgc
from sgc.errors import GraphError
from sgc.graph.verify import verify
from sgc.passes.baselines.average_per_datum import AveragePerDatumNode
from tests.subsampled import over_rows

ROWS = "rows of data (z)"


def average(graph: sgc.StochasticGraph) -> AveragePerDatumNode:
    node = graph.baseline("z")
    assert isinstance(node, AveragePerDatumNode)
    return node


def forget_the_rows(graph: sgc.StochasticGraph) -> None:
    graph.remove_node(ROWS)


def let_them_depend_on_the_sample(graph: sgc.StochasticGraph) -> None:
    graph.add_edge("z", ROWS)


def have_too_many(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(graph.payload(ROWS), shape=(4,)))


def look_at_another_plate(graph: sgc.StochasticGraph) -> None:
    graph.replace(replace(average(graph), rows=(replace(average(graph).rows[0], plate="others"),)))


def do_not_say_that_they_are_used(graph: sgc.StochasticGraph) -> None:
    graph.remove_edge(ROWS, "baseline(z)")


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (forget_the_rows, "does not know the rows of the plate 'data'"),
        (let_them_depend_on_the_sample, r"'rows of data \(z\)' depends on \['z'\]"),
        (have_too_many, "has not an element for each of 'rows of data"),
        (look_at_another_plate, "does not know the rows of the plate 'others'"),
        (do_not_say_that_they_are_used, r"computes from \['rows of data \(z\)'\] but its parents are \[\]"),
    ],
)
def test_sabotage_is_caught(sabotage: Callable[[sgc.StochasticGraph], None], complaint: str) -> None:
    graph = sgc.capture(*over_rows(), torch.tensor([4, 0, 2])).copy()
    verify(graph)
    sabotage(graph)
    with pytest.raises(GraphError, match=complaint):
        verify(graph)
