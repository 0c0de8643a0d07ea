"""The pictures of graphs on the pages of the tutorials, and whether they are those of the pages' own graphs."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

from sgc.graph.graph import StochasticGraph

ROOT = Path(__file__).resolve().parents[2]
PICTURES = {
    "docs/tutorials/belief-net.md": ("docs/pictures/belief_net_baselines.svg", "learned.loss_module.graph"),
    "docs/tutorials/hmm.md": ("docs/pictures/months.svg", "graph"),
    "docs/tutorials/vae.md": ("docs/pictures/kinds.svg", "svi.loss_module.graph"),
}
"""For a page its picture, and which graph is drawn, in the words of the page."""


def graph_of(page: str, names: dict[str, Any]) -> StochasticGraph:
    """The graph that is drawn on a page whose blocks have been run."""
    graph: StochasticGraph = eval(PICTURES[page][1], names)
    return graph


def texts_of_dot(dot: str) -> set[str]:
    """Every line of text that is drawn."""
    labels = [label for label in re.findall(r'[ \[]label="((?:[^"\\]|\\.)*)"', dot) if label]
    return {line.strip() for label in labels for line in label.replace('\\"', '"').split("\\n")} - {""}


def texts_of_svg(svg: str) -> set[str]:
    """Every line of text that is drawn."""
    return {unescape(text).replace("\xa0", " ").strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)}
