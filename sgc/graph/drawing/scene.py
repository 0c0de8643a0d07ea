"""A picture without a format: nodes, boxes within boxes, edges, and what the legend explains.

The shapes follow Schulman et al. 2015 (stochastic nodes are round, deterministic ones square, costs diamonds), the
boxes are those of graphical models: a box is a plate, or the steps of a loop that are folded into one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from os import sep
from pathlib import Path

from sgc.graph import keys
from sgc.graph.derived_nodes import MeanNode, NegationNode, OfAllParticlesNode
from sgc.graph.drawing.boxes import Box, boxes_of
from sgc.graph.drawing.drawn_graph import DrawnGraph, drawn_graph
from sgc.graph.drawing.folded_names import FoldedNames
from sgc.graph.drawing.folding import FoldedEdge, FoldedNode
from sgc.graph.drawing.several_inputs import together
from sgc.graph.enumeration_nodes import MarginalCostNode
from sgc.graph.estimator_rules import registered_estimators
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, CostNode, InputNode, SiteNode
from sgc.graph.program import InputKind, SiteKind


class Look(Enum):
    """What a node is; its value is what the legend calls it."""

    PARAMETER = "parameter"
    DATA = "data or constant"
    LATENT = "latent site"
    OBSERVED = "observed site"
    DETERMINISTIC = "deterministic site"
    SUBSAMPLE = "subsample"
    COST = "cost"
    SCORE = "score term"
    BASELINE = "baseline"
    OBJECTIVE = "objective"


class Line(Enum):
    """What an edge is: data flow, into the gradient only, or from other particles."""

    FLOW = "solid"
    ESTIMATE = "dashed"
    PARTICLES = "dotted"


@dataclass(frozen=True)
class SceneNode:
    """A node: its lines of text, what it is, the boxes around it from the outermost, and the graph's nodes in it."""

    name: str
    lines: tuple[str, ...]
    look: Look
    estimator: str | None
    boxes: tuple[Box, ...]
    members: tuple[str, ...]
    faded: bool = False
    tooltip: str = ""


@dataclass(frozen=True)
class SceneEdge:
    """An edge between nodes, by their names."""

    source: str
    target: str
    label: str
    line: Line
    estimator: str | None = None
    faded: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture; ``estimators`` are those that have a colour, in the order of the colours."""

    nodes: tuple[SceneNode, ...]
    edges: tuple[SceneEdge, ...]
    estimators: tuple[str, ...]

    @property
    def note(self) -> str:
        """What the legend says of edges."""
        if any(edge.line is Line.PARTICLES for edge in self.edges):
            return "dashed edges go into the gradient only, dotted ones come from other particles"
        dashed = any(edge.line is Line.ESTIMATE for edge in self.edges)
        return "dashed edges go into the gradient only" if dashed else ""

    def legend(self) -> Iterator[tuple[Look, str | None, str]]:
        """What is explained: each look and estimator that there is, and its words; inputs say what they are."""
        seen = {(node.look, node.estimator if node.look is Look.LATENT else None) for node in self.nodes}
        for look in [look for look in Look if look not in (Look.PARAMETER, Look.DATA)]:
            if look is not Look.LATENT and (look, None) in seen:
                yield look, None, look.value
            for estimator in (None, *self.estimators) if look is Look.LATENT else ():
                if (look, estimator) in seen:
                    yield look, estimator, f"{look.value}, {estimator}" if estimator else look.value


def scene_of(graph: StochasticGraph, *, unfold: bool = False, highlight: str | None = None) -> Scene:
    """What is drawn of a graph.

    :param unfold: draw each step of what is repeated.
    :param highlight: a latent site; all but it, its downstream costs, its baseline and its score term is faded.
    :raises KeyError: if that is no latent site.
    """
    drawn = drawn_graph(graph)
    kept = None if highlight is None else _kept(graph, highlight)
    folding = drawn.fold(kept, unfold=unfold)
    names = FoldedNames(folding)
    shown = [node for node in folding.nodes if not _is_idle_subsample(drawn, node)]
    around = boxes_of(drawn, shown, names)
    nodes = [
        SceneNode(
            name=node.first,
            lines=(*_lines(graph, names, node), *_own_ranges(names, node, around[node])),
            look=_look(graph, node.first),
            estimator=_estimator(drawn, node.first),
            boxes=around[node],
            members=tuple(key for member in node.members for key in drawn.members[member]),
            faded=kept is not None and node.first not in kept,
            tooltip=_tooltip(graph, node),
        )
        for node in shown
    ]
    faded = {node.name for node in nodes if node.faded}
    edges = [_edge(drawn, names, edge, faded) for edge in folding.edges if edge.target in around]
    return Scene(*together(nodes, edges), _estimators(graph))


def _kept(graph: StochasticGraph, site: str) -> dict[str, str]:
    """What a highlighted site leaves in colour: each node, and what it is to the site."""
    costs = graph.downstream_costs(site)
    marginals = [cost for cost in map(graph.payload, costs) if isinstance(cost, MarginalCostNode)]
    kept = dict.fromkeys([*costs, *(factor for cost in marginals for factor in cost.factors)], "downstream")
    return {**kept, site: "site", keys.score_term(site): "score", keys.baseline(site): "baseline", keys.LOSS: "loss"}


def _is_idle_subsample(drawn: DrawnGraph, node: FoldedNode) -> bool:
    """Whether a node is the indices of a plate, which nothing is computed of: the plate's box stands for it."""
    payload = drawn.graph.payload(node.first) if node.first in drawn.graph else None
    if not isinstance(payload, SiteNode) or payload.role is not SiteKind.SUBSAMPLE:
        return False
    return not any(source in node.members for source, _ in drawn.edges)


def _look(graph: StochasticGraph, key: str) -> Look:
    payload = graph.payload(key) if key in graph else None
    match payload:
        case InputNode():
            return Look.PARAMETER if payload.role is InputKind.PARAMETER else Look.DATA
        case SiteNode():
            return Look[payload.role.name]
        case CostNode():
            return Look.COST
        case BaselineNode():
            return Look.BASELINE
    return Look.OBJECTIVE if key in (keys.LOSS, keys.BOUND) else Look.SCORE


def _estimator(drawn: DrawnGraph, key: str) -> str | None:
    """The estimator of a latent site, or of the site that a score term or baseline belongs to."""
    payload = drawn.graph.payload(drawn.follows.get(key, key)) if drawn.follows.get(key, key) in drawn.graph else None
    if not isinstance(payload, SiteNode) or payload.role is not SiteKind.LATENT or payload.estimator is None:
        return None
    return payload.estimator.value


def _estimators(graph: StochasticGraph) -> tuple[str, ...]:
    used = (site.estimator.value for site in graph.of_type(SiteNode) if site.estimator is not None)
    return tuple(dict.fromkeys((*registered_estimators(), *used)))


def _lines(graph: StochasticGraph, names: FoldedNames, node: FoldedNode) -> Iterator[str]:
    payload = graph.payload(node.first) if node.first in graph else None
    name = names.name(node)
    match payload:
        case InputNode():
            yield name.partition(" ")[2]
            frozen = ", not trained" if payload.role is InputKind.PARAMETER and not payload.requires_grad else ""
            yield f"{payload.role.value}{_shape(payload.shape)}{frozen}"
        case SiteNode():
            yield name
            if payload.role is not SiteKind.SUBSAMPLE:
                yield f"{payload.distribution}{_shape(payload.shape)}"
        case BaselineNode():
            yield name
            yield from ([payload.words().partition(",")[0]] if payload.words() else [])
            yield from ["learned"] if payload.learned else []
        case MarginalCostNode():
            yield "log of the sum"
            yield f"over {_sites(payload.eliminated)}"
        case _:
            yield name
            if node.first == keys.LOSS:
                yield from _of_loss(graph)


def _of_loss(graph: StochasticGraph) -> Iterator[str]:
    """What the loss is minus, and over how many particles."""
    loss = graph.payload(keys.LOSS) if keys.LOSS in graph else None
    objective = graph.payload(loss.operand) if isinstance(loss, NegationNode) and loss.operand in graph else None
    yield f"minus {objective.short_words() if isinstance(objective, OfAllParticlesNode) else 'the ELBO'}"
    if graph.particles.count > 1:
        yield f"{'mean over' if isinstance(objective, MeanNode) else 'of'} {graph.particles.count} particles"


def _sites(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _shape(shape: tuple[int, ...]) -> str:
    return f" {list(shape)}" if shape else ""


def _own_ranges(names: FoldedNames, node: FoldedNode, boxes: tuple[Box, ...]) -> Iterator[str]:
    """The ranges of a folded node's numbers, but for those that a box around it says."""
    said = " ".join(box.label for box in boxes)
    own: dict[str, None] = {}
    for position, letter in enumerate(names.letters(node)):
        ranges = names.ranges(node, position)
        if ranges not in said or not any(letter in box.letters for box in boxes):
            own[ranges] = None
    yield from own


def _tooltip(graph: StochasticGraph, node: FoldedNode) -> str:
    """The user's line, its file as seen from the working directory, or the key."""
    payload = graph.payload(node.first) if node.first in graph else None
    source = payload.source if isinstance(payload, SiteNode | CostNode) else None
    return node.first if source is None else str(source).removeprefix(f"{Path.cwd()}{sep}")


def _edge(drawn: DrawnGraph, names: FoldedNames, edge: FoldedEdge, faded: set[str]) -> SceneEdge:
    source, target = edge.source.first, edge.target.first
    line = Line.FLOW
    if edge.edges[0] in drawn.across:
        line = Line.PARTICLES
    elif any(_look(drawn.graph, key) in (Look.SCORE, Look.BASELINE) for key in (source, target)):
        line = Line.ESTIMATE
    label = names.on_edge(edge.source, edge.target, edge.relation)
    estimator = _estimator(drawn, target) or _estimator(drawn, source) if line is Line.ESTIMATE else None
    return SceneEdge(source, target, label, line, estimator, source in faded or target in faded)
