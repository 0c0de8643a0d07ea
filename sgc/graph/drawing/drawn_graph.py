"""What is drawn of a graph: inputs, sites, costs, and for each scored site its score term and baseline; one objective.

The other nodes say how these are computed, and are drawn as part of what they belong to: the downstream cost, the
detached and the centred cost belong to the score term; what a baseline is learned from to the baseline; the score
function and the entropy term to the ``-log q`` that they are made of, probabilities to the site; sums, expectations,
means and signs to the loss. A partial sum is a way of adding up: an edge runs from each of its costs to the score term
that they are added up for. An observed or deterministic site stands between what it is computed of and its ``log p``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from sgc.graph import keys
from sgc.graph.cost_sums import DownstreamCostNode, PartialSumNode
from sgc.graph.derived_nodes import (
    DetachNode,
    DifferenceNode,
    NegationNode,
    OfAllParticlesNode,
    SurrogateTermNode,
    TotalNode,
)
from sgc.graph.drawing.folding import FEWEST, Folding, fold
from sgc.graph.drawing.numbered_names import NumberedName
from sgc.graph.enumeration_nodes import ExpectedCostNode, MarginalCostNode
from sgc.graph.expectation_nodes import ExpectationNode, MarginalProbabilityNode, ProbabilityNode, WeightNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineInputNode, BaselineNode, CostNode, InputNode, Payload, ScorePartNode, SiteNode
from sgc.graph.program import Plate, SiteKind


@dataclass
class DrawnGraph:
    """What is drawn: each node by the key of its main member.

    ``members`` are the graph's nodes of each; ``edges`` those between drawn nodes, the objective's last; ``across`` the
    edges from other particles; ``follows`` the site of each node that belongs to one.
    """

    graph: StochasticGraph
    members: dict[str, list[str]] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)
    across: set[tuple[str, str]] = field(default_factory=set)
    follows: dict[str, str] = field(default_factory=dict)

    def subsampled(self) -> Iterator[tuple[str, str]]:
        """The subsamples and the sites in their plates, which have the numbers of their loops in common."""
        subsamples = {*self.graph.sites(SiteKind.SUBSAMPLE)}
        for site in self.graph.of_type(SiteNode):
            yield from ((plate.name, site.key) for plate in site.plates if plate.name in subsamples - {site.key})

    def fold(self, apart: dict[str, str] | None = None, *, unfold: bool = False) -> Folding:
        """Fold what is repeated.

        :param apart: nodes that are only folded with those of the same word.
        :param unfold: fold nothing.
        """
        words = apart or {}
        signatures = {key: (*_signature(self.graph, key), words.get(key)) for key in self.members}
        folding = fold(signatures, list(self.edges), self.follows, fewest=None if unfold else FEWEST)
        folding.kin = folding.between(self.subsampled())
        return folding

    def plates(self, key: str) -> tuple[Plate, ...]:
        """The plates that a drawn node is in: those of its site, or the cost's own and the site's sequential ones."""
        payload = self.graph.payload(key) if key in self.graph else None
        if isinstance(payload, (SiteNode, MarginalCostNode)):
            return payload.plates
        site = self.graph.payload(self.follows[key]) if key in self.follows else None
        plates = site.plates if isinstance(site, SiteNode) else ()
        if isinstance(payload, CostNode):
            return (*(plate for plate in plates if not plate.vectorized), *payload.plates)
        return plates


def drawn_graph(graph: StochasticGraph) -> DrawnGraph:
    """What is drawn of a graph, which need not have been through all passes."""
    drawn = DrawnGraph(graph)
    owner: dict[str, str | None] = {}
    for payload in graph.of_type(Payload):
        owner[payload.key] = _owner(graph, payload)
    for key, main in owner.items():
        if main is not None:
            drawn.members.setdefault(main, []).append(key)
    for main in drawn.members:
        site = _site(graph, main)
        if site is not None:
            drawn.follows[main] = site
    observed = {
        keys.cost_key(site, +1): (site, {*graph.parents(site)})
        for site in (*graph.sites(SiteKind.OBSERVED), *graph.sites(SiteKind.DETERMINISTIC))
        if keys.cost_key(site, +1) in graph
    }
    for source, target, across in _edges(graph, owner):
        if target in observed and source in observed[target][1]:
            source = observed[target][0]
        drawn.edges[source, target] = None
        if across:
            drawn.across.add((source, target))
    for cost, (site, _) in observed.items():
        drawn.edges[site, cost] = None
    return drawn


def _edges(graph: StochasticGraph, owner: dict[str, str | None]) -> Iterator[tuple[str, str, bool]]:
    for source, target, data in graph.edges(data=True):
        one, other = owner.get(source), owner.get(target)
        if one is not None and other is not None and one != other:
            yield one, other, "across" in data
    order = {key: place for place, key in enumerate(graph.costs())}
    for downstream in graph.of_type(DownstreamCostNode):
        main = owner[downstream.key]
        assert main is not None
        for cost in sorted(downstream.costs & order.keys(), key=order.__getitem__):
            yield cost, main, False


def _owner(graph: StochasticGraph, payload: Payload) -> str | None:
    """The key of the drawn node that a node belongs to; None for a way of adding up."""
    match payload:
        case PartialSumNode():
            return None
        case BaselineInputNode() | BaselineNode():
            return keys.baseline(payload.site)
        case DownstreamCostNode():
            return keys.score_term(payload.site)
        case MarginalProbabilityNode():
            return None
        case WeightNode():
            return keys.score_term(payload.site)
        case ProbabilityNode():
            return payload.site
        case ScorePartNode():
            costs = keys.cost_key(payload.site, -1), keys.divergence(payload.site)
            return next((cost for cost in costs if cost in graph), payload.key)
        case DifferenceNode():
            return _owner_of(graph, payload.minuend, payload)
        case DetachNode():
            return _owner_of(graph, payload.operand, payload)
        case SurrogateTermNode():
            if payload.key == keys.score_term(payload.site):
                return payload.key
            if len(payload.operands) == 1:
                return _owner_of(graph, payload.operands[0], payload)
            return keys.LOSS
        case ExpectedCostNode() | ExpectationNode() | TotalNode() | NegationNode():
            return keys.LOSS
        case OfAllParticlesNode():
            return keys.BOUND if payload.key == keys.BOUND else keys.LOSS
    return keys.BOUND if payload.key in _OF_BOUNDS else payload.key


_OF_BOUNDS = (keys.LOG_WEIGHT, keys.BOUNDS, keys.OTHERS_BOUNDS, keys.NORMALISED_WEIGHT, keys.GAIN)
"""What is made of the log weights of all particles."""


def _owner_of(graph: StochasticGraph, key: str, payload: Payload) -> str | None:
    """That of the node that a node is computed from; the node itself, if that was taken out of the graph."""
    return _owner(graph, graph.payload(key)) if key in graph else payload.key


def _site(graph: StochasticGraph, main: str) -> str | None:
    """The site that a drawn node belongs to; None for sites, inputs, what belongs to several, and the objective."""
    payload = graph.payload(main) if main in graph else None
    if isinstance(payload, MarginalCostNode):
        return None
    if isinstance(payload, CostNode | ScorePartNode | BaselineNode | BaselineInputNode | SurrogateTermNode):
        return payload.site if payload.site in graph else None
    for site in graph.sites(SiteKind.LATENT) if payload is None else ():
        if main in (keys.score_term(site), keys.baseline(site)):
            return site
    return None


def _signature(graph: StochasticGraph, key: str) -> tuple[Hashable, ...]:
    """All that tells drawn nodes apart, but for the numbers in names."""
    payload = graph.payload(key) if key in graph else None
    match payload:
        case InputNode():
            return "input", payload.role, payload.dtype, payload.requires_grad, str(list(payload.shape))
        case SiteNode():
            return (
                *("site", payload.role, payload.distribution, payload.dtype, str(list(payload.shape))),
                *(payload.has_rsample, str(payload.scale), payload.masked, payload.opaque),
                *(payload.estimator, payload.asked, payload.measured, _shown_plates(payload.plates)),
                *((_baseline(graph, key), graph.scores_hidden_entries(key)) if payload.role is SiteKind.LATENT else ()),
            )
        case CostNode():
            return payload.kind, payload.sign, str(list(payload.shape)), _shown_plates(payload.plates)
        case None:
            return ("computed",)
    return payload.kind, str(list(payload.shape))


def _shown_plates(plates: tuple[Plate, ...]) -> tuple[Hashable, ...]:
    return tuple((NumberedName.of(plate.name).text, plate.dim, str(plate.size)) for plate in plates)


def _baseline(graph: StochasticGraph, site: str) -> Hashable:
    """What kind of baseline a site has."""
    node = graph.payload(keys.baseline(site)) if keys.baseline(site) in graph else None
    if not isinstance(node, BaselineNode):
        return None
    return (
        type(node),
        node.learned is None,
        node.average is None,
        node.beta,
        str(list(node.shape)),
        str(list(node.average_shape)),
    )
