"""Finds each scored site's downstream costs and plans how they are summed (Rao-Blackwellisation).

A cost that does not depend on a site's sample has no place beside its score function: in expectation it adds
nothing but variance (Schulman et al. 2015, theorem 1; Ranganath et al. 2014, section 3.1). Costs of plates that
the site is not in are summed out, costs of plates that it is in stay apart, exactly as in Pyro's
``MultiFrameTensor.sum_to``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgc.errors import GraphError
from sgc.graph import keys
from sgc.graph.cost_sums import DownstreamCostNode, PartialSumNode, Reduction
from sgc.graph.graph import StochasticGraph, all_provenances
from sgc.graph.nodes import CostNode
from sgc.graph.plan import Plan
from sgc.graph.program import Plate
from sgc.passes.choose_estimators import scored_sites
from sgc.passes.expectations import Expectations


def plan_downstream_costs(graph: StochasticGraph, plan: Plan) -> None:
    """Add a downstream-cost node for every scored site, and the sums that they share."""
    sites = scored_sites(graph)
    provenance = all_provenances(graph)
    costs = [cost for cost in map(graph.payload, graph.costs()) if isinstance(cost, CostNode) and provenance[cost.key]]
    _check_frames(costs)
    expectations = Expectations(graph)
    by_frames: dict[frozenset[Plate], dict[str, list[str]]] = {frozenset(cost.plates): {} for cost in costs}
    order: dict[str, list[frozenset[Plate]]] = {}
    for site in sites:
        below = [cost.key for cost in costs if site in provenance[cost.key]]
        addends = expectations.of(below, expectations.above(site), _plates(graph, site))
        for addend in addends:
            by_frames.setdefault(expectations.plates(addend), {}).setdefault(site, []).append(addend)
        order[site] = list(dict.fromkeys(map(expectations.plates, addends)))
    sums = {
        frames: _Sums(graph, frames, {site: tuple(addends) for site, addends in wanted.items()})
        for frames, wanted in by_frames.items()
    }
    for site in sites:
        terms = [(frames, sums[frames].key(tuple(by_frames[frames][site]))) for frames in order[site]]
        costs_below = graph.downstream_costs(site)
        node = summed_to_plates(expectations, DownstreamCostNode, keys.downstream(site), site, costs_below, terms)
        graph.add(node, node.computed_from())


def _plates(graph: StochasticGraph, site: str) -> frozenset[Plate]:
    """The plates of a site of the guide."""
    assert graph.program is not None
    density = graph.program.site(site).guide
    assert density is not None
    return frozenset(density.plates)


def _check_frames(costs: list[CostNode]) -> None:
    for cost in costs:
        for plate in cost.plates:
            assert plate.dim is not None
            if -plate.dim > len(cost.shape):
                raise GraphError(
                    f"{cost.key} has shape {list(cost.shape)}, which has no dim {plate.dim} for plate '{plate.name}'",
                    site=cost.site,
                    source=cost.source,
                    remedy="expand the distribution to the plates that it is in",
                )


def all_costs(graph: StochasticGraph, site: str) -> DownstreamCostNode:
    """What a score function would be multiplied by without Rao-Blackwellisation: every cost, summed to the site's
    plates. The node is not in the graph yet.
    """
    expectations = Expectations(graph)
    addends = expectations.of(graph.costs(), expectations.above(site), _plates(graph, site))
    terms = [(expectations.plates(addend), addend) for addend in addends]
    costs = frozenset(graph.costs())
    return summed_to_plates(expectations, DownstreamCostNode, keys.all_costs(site), site, costs, terms)


def summed_to_plates(
    expectations: Expectations,
    node_type: type[DownstreamCostNode],
    key: str,
    site: str,
    costs: frozenset[str],
    terms: list[tuple[frozenset[Plate], str]],
) -> DownstreamCostNode:
    """The sum of some addends, each summed over the plates that the site is not in."""
    graph = expectations.graph
    target = _plates(graph, site)
    reductions, shapes = [], []
    for frames, addend in terms:
        shape = list(graph.value_shape(addend))
        dims = []
        for plate in sorted(frames, key=lambda plate: plate.dim or 0, reverse=True):
            assert plate.dim is not None
            if plate not in target and shape[plate.dim] != 1:
                shape[plate.dim] = 1
                dims.append(plate.dim)
        ones = next((i for i, size in enumerate(shape) if size != 1), len(shape))
        reductions.append(Reduction(addend, tuple(dims), ones))
        shapes.append(tuple(shape[ones:]))
    values_in = expectations.together(expectations.values_in(addend) for _, addend in terms)
    return node_type(key, tuple(torch.broadcast_shapes(*shapes)), site, costs, tuple(reductions), values_in)


@dataclass
class _Sums:
    """Partial sums of costs, or of their expectations, of the same frames.

    Where several sites want overlapping sums, the smaller is computed first and the larger built on it, so that
    the T nested sums along a chain take O(T) additions. Where nothing is gained the costs are added in Pyro's
    order, to the same bits.
    """

    graph: StochasticGraph
    frames: frozenset[Plate]
    wanted: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        distinct = sorted({summed for summed in self.wanted.values() if len(summed) > 1}, key=len)
        self._bit: dict[str, int] = {}
        for summed in distinct:
            for key in summed:
                self._bit.setdefault(key, 1 << len(self._bit))
        self._built: list[tuple[int, tuple[str, ...], str]] = []
        for summed in distinct:
            self._build(summed)

    def key(self, summed: tuple[str, ...]) -> str:
        """The node that holds the sum of these costs."""
        if len(summed) == 1:
            return summed[0]
        return next(name for _, built, name in self._built if built == summed)

    def _build(self, summed: tuple[str, ...]) -> None:
        rest = sum(self._bit[key] for key in summed)
        parts: list[str] = []
        for mask, _, name in reversed(self._built):
            if mask & ~rest == 0:
                parts.append(name)
                rest &= ~mask
        addends = (*(key for key in summed if rest & self._bit[key]), *parts)
        key = add_partial_sum(self.graph, self.frames, addends)
        self._built.append((sum(self._bit[cost] for cost in summed), summed, key))


def add_partial_sum(graph: StochasticGraph, frames: frozenset[Plate], addends: tuple[str, ...]) -> str:
    """Add the sum of some costs and partial sums of these frames, in this order; its key."""
    number = sum(1 for _ in graph.of_type(PartialSumNode))
    shape = tuple(torch.broadcast_shapes(*(graph.value_shape(key) for key in addends)))
    node = PartialSumNode(keys.partial_sum(number), shape, frames, addends)
    graph.add(node, addends)
    return node.key
