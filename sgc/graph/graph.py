"""The stochastic computation graph: a ``networkx.DiGraph`` with typed payloads that answers questions."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import networkx as nx

from sgc.graph import keys
from sgc.graph.cost_sums import DownstreamCostNode
from sgc.graph.derived_nodes import NegationNode, OfAllParticlesNode
from sgc.graph.enumeration_nodes import FactorDensityNode
from sgc.graph.nodes import BaselineNode, CostNode, Estimator, Payload, ScorePartNode, SiteNode
from sgc.graph.program import Particles, Program, SiteKind

if TYPE_CHECKING:
    from sgc.graph.drawing.notebook_bundle import Picture

_P = TypeVar("_P", bound=Payload)


class StochasticGraph(nx.DiGraph):
    """A stochastic computation graph (Schulman et al. 2015), the program's quotient by its named nodes.

    Nodes are strings, readable and unique: a site's own name (``"z"``), ``"log p(x)"``, ``"-log q(z)"``,
    ``"param theta"``, ``"downstream(z)"``, ``"baseline(z)"``, ``"surrogate"``. ``graph.payload(key)`` is a
    node's frozen, typed record; its plain string attributes are for networkx's algorithms and writers. An edge says
    that data flow in the fx graph from one named node to the other without passing a third.
    """

    def __init__(self, incoming_graph_data: Any = None, **attributes: Any) -> None:
        super().__init__(incoming_graph_data, **attributes)
        self._payloads: dict[str, Payload] = dict(getattr(incoming_graph_data, "_payloads", {}))
        self.program: Program | None = getattr(incoming_graph_data, "program", None)

    # -- construction

    def add(self, payload: Payload, parents: Iterator[str] | list[str] | tuple[str, ...] = ()) -> None:
        """Add a node with its payload and the edges from its parents; a key already there is replaced."""
        self._payloads[payload.key] = payload
        super().add_node(payload.key, **payload.attributes())
        for parent in parents:
            self.add_edge(parent, payload.key)

    def add_edge_across_particles(self, parent: str, child: str) -> None:
        """Add an edge from the other particles' value of a node; it hands on no provenance of the child's own."""
        self.add_edge(parent, child, across="particles")

    def replace(self, payload: Payload) -> None:
        """Exchange the payload of an existing node."""
        if payload.key not in self:
            raise KeyError(payload.key)
        self.add(payload)

    def copy(self, as_view: bool = False) -> Any:
        """A copy with the payloads (which are immutable and shared)."""
        copied = super().copy(as_view=as_view)
        if not as_view:
            copied._payloads = dict(self._payloads)
            copied.program = self.program
        return copied

    def subgraph(self, nodes: Any) -> StochasticGraph:
        """A view of some of the nodes, with their payloads; it can be printed and drawn."""
        view: StochasticGraph = super().subgraph(nodes)
        view._payloads, view.program = self._payloads, self.program
        return view

    # -- reading

    def payload(self, key: str) -> Payload:
        """The typed record of a node.

        :raises KeyError: if there is no such node.
        """
        return self._payloads[key]

    def value_shape(self, key: str) -> tuple[int, ...]:
        """The shape of a node's value: that of a cost has dims for enumerated values, which its payload leaves out."""
        payload = self._payloads[key]
        if self.program is None or not self.program.enumerates or not isinstance(payload, CostNode):
            return payload.shape
        return self.program.shape(payload.fx)

    def of_type(self, payload_type: type[_P]) -> Iterator[_P]:
        """All payloads of a type, in the order in which they were added."""
        return (p for key, p in self._payloads.items() if isinstance(p, payload_type) and key in self)

    def sites(self, role: SiteKind | None = None) -> tuple[str, ...]:
        """The names of the Pyro sites, in the order of the program; with ``role``, only those of that kind."""
        return tuple(p.key for p in self.of_type(SiteNode) if role is None or p.role is role)

    def costs(self) -> tuple[str, ...]:
        """The keys of what the ELBO is the sum of: the model's, then the guide's, each in the order of the program,
        then what sites of the model are summed out into.
        """
        return tuple(p.key for p in self.of_type(CostNode) if not isinstance(p, FactorDensityNode))

    def provenance(self, key: str, *, reparameterized: bool = True) -> frozenset[str]:
        """The latent sites upstream of a node (itself included, if it is one).

        With ``reparameterized=False`` only those sampled without reparameterisation: the sets that Pyro's
        ``TrackNonReparam`` finds.
        """
        if key not in self:
            raise KeyError(key)
        latent = set()
        for name in self._upstream(key):
            payload = self._payloads[name]
            if isinstance(payload, SiteNode) and payload.role is SiteKind.LATENT:
                if reparameterized or not payload.has_rsample:
                    latent.add(name)
        return frozenset(latent)

    def parents(self, key: str) -> Iterator[str]:
        """The nodes that there is an edge from, in one particle."""
        return (parent for parent, data in self.pred[key].items() if "across" not in data)

    def _upstream(self, key: str) -> set[str]:
        seen, stack = {key}, [key]
        while stack:
            new = set(self.parents(stack.pop())) - seen
            seen |= new
            stack.extend(new)
        return seen

    def downstream_costs(self, site: str) -> frozenset[str]:
        """The cost nodes that depend on a latent site: all that its score-function term is multiplied by."""
        self._latent(site)
        below = nx.descendants(self, site)
        return frozenset(key for key in self.costs() if key in below)

    def estimator(self, site: str) -> Estimator:
        """The estimator that was chosen for a latent site."""
        chosen = self._latent(site).estimator
        assert chosen is not None, "the graph has not been through the estimator pass"
        return chosen

    def is_asked(self, site: str) -> bool:
        """Whether a latent site has its estimator because it asks for it."""
        return self._latent(site).asked

    def is_measured(self, site: str) -> bool:
        """Whether estimator and baseline of a latent site were chosen by measurement (``"auto"``)."""
        return self._latent(site).measured

    def scores_hidden_entries(self, site: str) -> bool:
        """Whether the score function of a latent site has the entries that a mask below ``to_event`` hides.

        Pyro's never has; it must have them where they reach a cost.
        """
        self._latent(site)
        guide = self.program.site(site).guide if self.program is not None else None
        chosen = self._payloads.get(keys.score_function(site))
        return (
            guide is not None
            and guide.masked_score_function is not None
            and isinstance(chosen, ScorePartNode)
            and chosen.fx == guide.score_function
        )

    def baseline(self, site: str) -> BaselineNode | None:
        """The baseline of a latent site, None if it has none."""
        self._latent(site)
        key = keys.baseline(site)
        node = self._payloads.get(key) if key in self else None
        return node if isinstance(node, BaselineNode) else None

    def downstream_cost(self, site: str) -> DownstreamCostNode | None:
        """The reduction plan of a score-function site's downstream costs, None for other sites."""
        key = keys.downstream(site)
        node = self._payloads.get(key) if key in self else None
        return node if isinstance(node, DownstreamCostNode) else None

    @property
    def particles(self) -> Particles:
        """How the particles of one call are computed; one particle in a graph that has no objective yet."""
        loss = self._payloads.get(keys.LOSS)
        objective = self._payloads.get(loss.operand) if isinstance(loss, NegationNode) else None
        return objective.particles if isinstance(objective, OfAllParticlesNode) else Particles()

    def _latent(self, site: str) -> SiteNode:
        payload = self._payloads.get(site)
        if not isinstance(payload, SiteNode) or payload.role is not SiteKind.LATENT:
            latent = ", ".join(self.sites(SiteKind.LATENT)) or "none"
            raise KeyError(f"{site!r} is not a latent site; the latent sites are: {latent}")
        return payload

    # -- showing

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, unfold: bool = False) -> str:
        """The graph in words, as it is printed: inputs, sites, costs, the objective; at each latent site its gradient.

        :param unfold: write each step of what is repeated, which is folded else.
        """
        from sgc.graph.render import as_text

        return as_text(self, unfold=unfold)

    def to_dot(self, *, unfold: bool = False, highlight: str | None = None) -> str:
        """The graph in DOT, the language of Graphviz; see :meth:`draw`."""
        from sgc.graph.drawing.dot_text import as_dot
        from sgc.graph.drawing.scene import scene_of

        return as_dot(scene_of(self, unfold=unfold, highlight=highlight))

    def to_mermaid(self, *, unfold: bool = False, highlight: str | None = None) -> str:
        """The graph as a Mermaid flowchart, which GitHub and JupyterLab draw; see :meth:`draw`."""
        from sgc.graph.drawing.mermaid_text import as_mermaid
        from sgc.graph.drawing.scene import scene_of

        return as_mermaid(scene_of(self, unfold=unfold, highlight=highlight))

    def draw(self, path: str | PathLike[str], *, unfold: bool = False, highlight: str | None = None) -> Path:
        """Write a picture of the graph, with a legend; needs Graphviz and the extra ``sgc[draw]``.

        :param path: the file, which ends in ``.svg``, ``.png`` or ``.pdf``; it is written over.
        :param unfold: draw each step of what is repeated, which is folded else.
        :param highlight: a latent site: its downstream costs, score term and baseline are shown, the rest is faded.
        :returns: the path.
        :raises KeyError: if ``highlight`` is no latent site.
        :raises sgc.errors.ArgumentError: if the file ends otherwise.
        :raises sgc.errors.DrawingError: if Graphviz is missing.
        """
        from sgc.graph.drawing.picture_files import format_of, rendered

        ending = format_of(path)
        Path(path).write_bytes(rendered(self.to_dot(unfold=unfold, highlight=highlight), ending))
        return Path(path)

    def picture(self, *, unfold: bool = False, highlight: str | None = None) -> Picture:
        """The picture that :meth:`draw` writes, as the value of a cell of a notebook.

        :raises KeyError: if ``highlight`` is no latent site.
        """
        from sgc.graph.drawing.notebook_bundle import Picture

        if highlight is not None:
            self._latent(highlight)
        return Picture(self, unfold, highlight)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from sgc.graph.drawing.notebook_bundle import bundle_of

        return bundle_of(self)


def all_provenances(graph: StochasticGraph) -> dict[str, frozenset[str]]:
    """``graph.provenance(key)`` for every key, in one sweep over the graph in topological order."""
    latent = graph.sites(SiteKind.LATENT)
    bit = {name: 1 << position for position, name in enumerate(latent)}
    masks: dict[str, int] = {}
    for key in nx.topological_sort(graph):
        mask = 0
        for parent in graph.parents(key):
            mask |= masks[parent]
        payload = graph.payload(key)
        if isinstance(payload, SiteNode) and payload.role is SiteKind.LATENT:
            mask |= bit[key]
        masks[key] = mask
    return {key: frozenset(name for name in latent if mask & bit[name]) for key, mask in masks.items()}
