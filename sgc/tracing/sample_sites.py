"""The sample statements of a trace of Pyro's."""

from __future__ import annotations

from typing import Any

from pyro.poutine import Trace


def samples(trace: Trace) -> list[Any]:
    """The sites of the sample statements of a trace, in order."""
    return [site for site in trace.nodes.values() if site["type"] == "sample"]
