"""The latent sites upstream of every node at once, as one sweep over the graph in topological order."""

from __future__ import annotations

import networkx as nx

from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import SiteNode
from sgc.graph.program import SiteKind


def all_provenances(graph: StochasticGraph) -> dict[str, frozenset[str]]:
    """``graph.provenance(key)`` for every key, in time linear in the size of the answer's bit sets."""
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
