"""Decides what is subtracted from each downstream cost.

A baseline lowers the variance of the score-function estimator and keeps it unbiased as long as it does not
depend on the sample (Mnih and Gregor 2014, section 2.2). The options are Pyro's: ``nn_baseline`` with
``nn_baseline_input``, ``baseline_value``, ``use_decaying_avg_baseline`` with ``baseline_beta``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sgc.errors import BaselineError
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, Estimator, SiteNode
from sgc.passes.estimators import scored_sites


def add_baselines(graph: StochasticGraph) -> None:
    """Add a baseline node for every scored site that asks for one.

    :raises BaselineError: if a baseline depends on the sample that it is for, or its shape is not that of the
        downstream cost.
    """
    assert graph.program is not None
    for name in scored_sites(graph):
        options = graph.program.site(name).baseline
        if options is None or not (options.kind or options.decaying_average):
            continue
        downstream = graph.downstream_cost(name)
        assert downstream is not None
        learned = f"baseline_input({name})" if options.kind else None
        if learned is not None:
            _check_independent(graph, name, learned, options.kind)
        shape = downstream.shape if options.decaying_average else ()
        if options.value_shape is not None:
            shape = _broadcast(options.value_shape, shape) if options.decaying_average else options.value_shape
        if shape != downstream.shape:
            site = graph.payload(name)
            assert isinstance(site, SiteNode)
            raise BaselineError(
                f"Expected baseline at site {name} to be {torch.Size(downstream.shape)} "
                f"instead got {torch.Size(shape)}",
                site=name,
                source=site.source,
                remedy=f"let {options.kind} return a tensor of shape {list(downstream.shape)}: the plates of the "
                "site, without its event dims",
            )
        guide = graph.program.site(name).guide
        assert guide is not None
        density = graph.program.node(guide.log_prob).meta["val"]
        node = BaselineNode(
            key=f"baseline({name})",
            shape=downstream.shape,
            site=name,
            learned=learned,
            average=name if options.decaying_average else None,
            beta=options.beta,
            dtype=density.dtype,
            device=density.device,
        )
        graph.add(node, [learned] if learned else [])


def idle_baselines(graph: StochasticGraph) -> Iterator[tuple[SiteNode, str]]:
    """The sites with a baseline, or an option of one, that has no effect, and why."""
    assert graph.program is not None
    for site in graph.of_type(SiteNode):
        declared = graph.program.site(site.key)
        options = declared.baseline
        has_one = options is not None and (options.kind is not None or options.decaying_average)
        if declared.baseline_in_model and not has_one:
            yield site, "the baseline of the model's statement has no effect, only the guide's has: give it there"
        if options is None:
            continue
        if options.idle_beta:
            yield (
                site,
                (
                    "baseline_beta has no effect without a decaying average: add use_decaying_avg_baseline=True, or "
                    "leave it out"
                ),
            )
        if has_one and graph.baseline(site.key) is None:
            pathwise = site.estimator is Estimator.PATHWISE
            reason = "the site is pathwise, without a score function" if pathwise else "no cost depends on its sample"
            yield site, f"the baseline has no effect, because {reason}: leave it out"


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
