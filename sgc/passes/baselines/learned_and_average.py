"""Learned baselines, and decaying averages of downstream costs (Mnih and Gregor 2014, section 2.2).

The options are Pyro's: ``nn_baseline`` with ``nn_baseline_input``, ``baseline_value``, ``use_decaying_avg_baseline``
with ``baseline_beta``; beside the last one ``average_per_datum``, which is not.
"""

from __future__ import annotations

import torch

from sgc.errors import BaselineError
from sgc.graph import keys
from sgc.graph.cost_sums import DownstreamCostNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, SiteNode
from sgc.graph.program import Baseline
from sgc.passes.baselines.average_per_datum import with_rows


def add_learned_and_average(
    graph: StochasticGraph, name: str, options: Baseline, downstream: DownstreamCostNode
) -> None:
    """Add the baseline node of a scored site with such options.

    :raises BaselineError: if the baseline depends on the sample that it is for, its shape is not that of the downstream
        cost, or the rows of an average for each datum depend on a sample.
    """
    assert graph.program is not None
    learned = keys.baseline_input(name) if options.kind else None
    if learned is not None:
        _check_independent(graph, name, learned, options.kind)
    shape = downstream.shape if options.decaying_average else ()
    if options.value_shape is not None:
        shape = _broadcast(options.value_shape, shape) if options.decaying_average else options.value_shape
    if shape != downstream.shape:
        site = graph.payload(name)
        assert isinstance(site, SiteNode)
        raise BaselineError(
            f"Expected baseline at site {name} to be {torch.Size(downstream.shape)} instead got {torch.Size(shape)}",
            site=name,
            source=site.source,
            remedy=f"let {options.kind} return a tensor of shape {list(downstream.shape)}: the plates of the "
            "site, without its event dims",
        )
    guide = graph.program.site(name).guide
    assert guide is not None
    density = graph.program.node(guide.log_prob).meta["val"]
    node = BaselineNode(
        key=keys.baseline(name),
        shape=downstream.shape,
        site=name,
        learned=learned,
        average=name if options.decaying_average else None,
        beta=options.beta,
        dtype=density.dtype,
        device=density.device,
    )
    if options.rows:
        node = with_rows(graph, node, options.rows)
    graph.add(node, node.computed_from())


def _check_independent(graph: StochasticGraph, name: str, learned: str, kind: str | None) -> None:
    if name in graph.provenance(learned):
        site = graph.payload(name)
        assert isinstance(site, SiteNode)
        raise BaselineError(
            f"{kind} depends on the site's own sample, which biases the gradient",
            site=name,
            source=site.source,
            remedy="compute the baseline from the data and from samples that do not depend on this site",
        )


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(one, other))
    except RuntimeError:
        return one
