"""Builds the stochastic computation graph of a program: its named nodes, and the data flow between them."""

from __future__ import annotations

from torch import fx

from sgc.graph import keys
from sgc.graph.closed_form import ClosedFormNode
from sgc.graph.effects import dependencies
from sgc.graph.enumerated_values import Marginal, factors_of
from sgc.graph.enumeration_nodes import ExpectedCostNode, FactorDensityNode, MarginalCostNode, without_enumeration
from sgc.graph.expectation_nodes import ProbabilityNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineInputNode, CostNode, InputNode, Payload, PlateRowsNode, ScorePartNode, SiteNode
from sgc.graph.program import Density, Program, Site, SiteKind


def build_graph(program: Program) -> StochasticGraph:
    """The quotient of the program's fx graph by its inputs, samples and log-density terms.

    Inputs and samples are where data flow is cut; log-density terms are where it ends. An edge stands for at
    least one path in the fx graph (writes into shared storage included) that passes no other named node.
    """
    graph = StochasticGraph()
    graph.program = program
    sources: dict[fx.Node, list[str]] = {}
    sinks: list[tuple[Payload, fx.Node]] = []

    for declared in program.inputs:
        key = keys.input_key(declared.kind, declared.name)
        node = program.node(declared.node)
        payload = InputNode(
            key, declared.shape, declared.node, declared.kind, str(declared.dtype), declared.requires_grad
        )
        graph.add(payload)
        sources.setdefault(node, []).append(key)

    marked: list[tuple[str, fx.Node]] = []
    for site in program.sites:
        graph.add(_site_node(site))
        if site.value is not None:
            node = program.node(site.value)
            if site.kind in (SiteKind.LATENT, SiteKind.SUBSAMPLE):
                sources.setdefault(node, []).append(site.name)
                marked.append((site.name, node))
            else:
                sinks.append((graph.payload(site.name), node))

    factors = factors_of(program.marginals)
    for name in program.model_order:
        node_type = FactorDensityNode if name in factors else CostNode
        sinks.append(_cost(program, program.site(name), node_type, sign=+1))
    for name in program.guide_order:
        sinks.append(_cost(program, program.site(name), CostNode, sign=-1))
    for site in program.sites:
        sinks += _score_parts(program, site)
        if site.guide is not None and site.guide.probability is not None:
            sinks.append(_probability(program, site.name, site.guide))
        if site.closed_form is not None:
            name = site.closed_form.divergence
            form = ClosedFormNode(keys.closed_form(site.name), program.shape(name), name, site.name)
            sinks.append((form, program.node(name)))

    upstream = _Upstream(program, sources)
    enumerated = {site.name for site in program.sites if site.enumerated is not None}
    for name, node in marked:
        for parent in upstream.above(node):
            graph.add_edge(parent, name)
    for sink, node in sinks:
        parents = upstream.at(node)
        if isinstance(sink, CostNode) and sink.site in enumerated:
            if sink.sign < 0:  # its values do not depend on anything, their probabilities do
                for parent in parents:
                    if parent != sink.site:
                        graph.add_edge(parent, sink.site)
            parents = {**parents, sink.site: None}  # an element for each value, also where the value is not asked for
        graph.add(sink, tuple(parents))
    _add_expectation(graph, program)
    return graph


def _add_expectation(graph: StochasticGraph, program: Program) -> None:
    """Add what sites of the model are summed out into, and the terms of an expectation over enumerated values, which
    the program computes of costs and weights.
    """
    marginals: list[str] = []
    for marginal in program.marginals:
        node = _marginal_cost(program, marginal)
        graph.add(node, node.factors)
        marginals.append(node.key)
    for expected in program.expected:
        cost = marginals[expected.cost] if isinstance(expected.cost, int) else keys.cost_key(*expected.cost)
        site = graph.payload(cost).site  # type: ignore[attr-defined]
        weights = [key for key in map(keys.score_function, expected.weights) if key in graph]
        key = keys.expected_cost(cost)
        term = ExpectedCostNode(key, program.shape(expected.node), expected.node, site, cost, expected.weights)
        graph.add(term, [cost, *weights])


def _marginal_cost(program: Program, marginal: Marginal) -> MarginalCostNode:
    sites = [program.site(name) for name in marginal.factors]
    plates = {plate.name: plate for site in sites if site.model is not None for plate in site.model.plates}
    left = tuple(plates[name] for name in marginal.plates)
    shape = program.shape(marginal.node)
    if not program.expected:  # else it is weighted in the program, and has dims for nothing else than plates and values
        shape = without_enumeration(shape, left)
    first = program.site(marginal.eliminated[0])
    return MarginalCostNode(
        key=keys.marginal_cost(marginal.eliminated),
        shape=shape,
        fx=marginal.node,
        site=first.name,
        sign=+1,
        plates=left,
        source=first.source,
        factors=tuple(keys.cost_key(site.name, +1) for site in sites),
        eliminated=marginal.eliminated,
        sums=marginal.sums,
        largest=marginal.largest,
    )


def _probability(program: Program, name: str, density: Density) -> tuple[Payload, fx.Node]:
    node = density.probability
    assert node is not None
    values_in = program.values_in(density, node)
    payload = ProbabilityNode(keys.probability(name), program.shape(node), node, name, values_in)
    return payload, program.node(node)


class _Upstream:
    """The nearest named nodes above each fx node; each fx node is visited once."""

    def __init__(self, program: Program, sources: dict[fx.Node, list[str]]) -> None:
        self._sources = sources
        self._above: dict[fx.Node, dict[str, None]] = {}
        depends = dependencies(program.module.graph)
        for node in program.module.graph.nodes:
            above: dict[str, None] = {}
            for parent in depends[node]:
                above.update(self.at(parent))
            self._above[node] = above

    def at(self, node: fx.Node) -> dict[str, None]:
        """The names of this node if it has any, else the nearest above it."""
        return dict.fromkeys(self._sources[node]) if node in self._sources else self._above[node]

    def above(self, node: fx.Node) -> dict[str, None]:
        """The nearest named nodes strictly above."""
        return self._above[node]


def _site_node(site: Site) -> SiteNode:
    return SiteNode(
        key=site.name,
        shape=site.shape,
        fx=site.value,
        role=site.kind,
        distribution=site.distribution,
        dtype=str(site.dtype),
        plates=site.plates,
        has_rsample=site.has_rsample,
        scale=site.scale,
        masked=site.masked,
        opaque=site.opaque,
        source=site.source,
    )


def _cost(program: Program, site: Site, node_type: type[CostNode], sign: int) -> tuple[CostNode, fx.Node]:
    density = site.model if sign > 0 else site.guide
    assert density is not None
    plates = tuple(plate for plate in density.plates if plate.vectorized)
    shape = program.shape(density.log_prob)
    if program.enumerates:
        shape = without_enumeration(shape, plates)
    key = keys.cost_key(site.name, sign)
    payload = node_type(key, shape, density.log_prob, site.name, sign, plates, site.source)
    return payload, program.node(density.log_prob)


def _score_parts(program: Program, site: Site) -> list[tuple[Payload, fx.Node]]:
    parts: list[tuple[Payload, fx.Node]] = []
    if site.guide is not None:
        for part in ("score_function", "masked_score_function", "entropy_term"):
            name = getattr(site.guide, part)
            if name is not None:
                key = keys.score_part(part, site.name)
                parts.append((ScorePartNode(key, program.shape(name), name, site.name, part), program.node(name)))
    if site.baseline is not None and site.baseline.value is not None:
        name = site.baseline.value
        payload = BaselineInputNode(keys.baseline_input(site.name), program.shape(name), name, site.name, site.source)
        parts.append((payload, program.node(name)))
    for rows in site.baseline.rows if site.baseline is not None else ():
        key = keys.plate_rows(site.name, rows.plate)
        index = PlateRowsNode(key, program.shape(rows.index), rows.index, site.name, site.source, rows.plate)
        parts.append((index, program.node(rows.index)))
    return parts
