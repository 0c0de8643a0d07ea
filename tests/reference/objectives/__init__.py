"""Pyro programs as people write them, each under the ELBO that it is written for: the import is all that changes."""

from __future__ import annotations

from importlib import import_module

from tests.reference.objectives.comparison import Comparison, Comparisons

TOPICS = ("summed_out", "closed_forms", "bounds", "mixed_estimators")

COMPARISONS: tuple[Comparison, ...] = tuple(
    one for topic in TOPICS for one in import_module(f"{__name__}.{topic}").COMPARISONS
)

assert len({one.name for one in COMPARISONS}) == len(COMPARISONS), "the names are not unique"

__all__ = ["COMPARISONS", "Comparison", "Comparisons"]
