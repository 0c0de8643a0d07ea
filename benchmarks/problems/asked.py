"""What discrete sites ask for, and the rows of a problem that has one kind of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.problems.base import Method


def nothing() -> dict[str, Any]:
    return {}


def average() -> dict[str, Any]:
    return {"baseline": {"use_decaying_avg_baseline": True}}


def enumerate_it() -> dict[str, Any]:
    return {"enumerate": "parallel"}


Asks = Callable[[], dict[str, Any]]
ASKED: dict[str, tuple[Asks, Asks | None]] = {
    "drawn": (nothing, nothing),
    "drawn, average": (nothing, average),
    "enumerated": (nothing, enumerate_it),
    "summed out": (enumerate_it, None),
}
"""By variant, what discrete sites ask for in the model and in the guide; ``None``: the guide does not have them.

Made anew for each site, for NumPyro writes into it.
"""

THREE_WAYS = (
    Method("sgc", "score function, decaying average", "drawn, average"),
    Method("sgc", "score function, leave-one-out, K = 4", "drawn", particles=4, estimators="leave-one-out"),
    Method("sgc", "score function, auto, K = 4", "drawn", particles=4, estimators="auto"),
    Method("sgc", "enumerated in the guide", "enumerated", "TraceEnum_ELBO"),
    Method("sgc", "summed out of the model", "summed out", "TraceEnum_ELBO"),
    Method("Pyro", "score function, decaying average", "drawn, average"),
    Method("Pyro", "enumerated in the guide", "enumerated", "TraceEnum_ELBO"),
    Method("Pyro", "summed out of the model", "summed out", "TraceEnum_ELBO"),
    Method("Pyro Jit", "enumerated in the guide", "enumerated", "TraceEnum_ELBO"),
    Method("Pyro Jit", "summed out of the model", "summed out", "TraceEnum_ELBO"),
    Method("NumPyro", "score function", "drawn"),
    Method("NumPyro", "score function, K = 4", "drawn", particles=4),
    Method("NumPyro", "enumerated in the guide", "enumerated", "TraceEnum_ELBO"),
    Method("NumPyro", "summed out of the model", "summed out", "TraceEnum_ELBO"),
)
"""For what has one kind of discrete site."""
