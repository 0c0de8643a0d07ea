"""The texts that are kept of some programs."""

from __future__ import annotations

import re
from pathlib import Path

import sgc

GOLDENS = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[2]


def texts(graph: sgc.StochasticGraph) -> dict[str, str]:
    """The printed graph, DOT and Mermaid, by the ending of their files."""
    made = {"txt": f"{graph}\n", "dot": graph.to_dot(), "mmd": graph.to_mermaid()}
    return {ending: _without_places(text) for ending, text in made.items()}


def _without_places(text: str) -> str:
    """Without the folders that Pyro and this file are in, and without line numbers of Pyro."""
    text = re.sub(r'\b(pyro/[^\s"]*?\.py):\d+', r"\1:…", text)
    return text.replace(f"{ROOT}/", "")
