"""Small Pyro programs, one for each feature that a compiled TraceGraph_ELBO has to agree with Pyro on."""

from __future__ import annotations

from importlib import import_module

from tests.reference.zoo.entry import Case, Entry

TOPICS = (
    "parameters",
    "modules",
    "sites",
    "relaxed",
    "discrete",
    "indexing",
    "terms",
    "plates",
    "handlers",
    "guides",
    "autoguides",
    "inputs",
    "state",
    "baselines",
    "particles",
    "classics",
    "sequences",
)

ZOO: tuple[Entry, ...] = tuple(entry for topic in TOPICS for entry in import_module(f"{__name__}.{topic}").ENTRIES)

assert len({entry.name for entry in ZOO}) == len(ZOO), "the names are not unique"

__all__ = ["ZOO", "Case", "Entry"]
