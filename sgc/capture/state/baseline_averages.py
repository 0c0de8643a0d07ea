"""The decaying averages of baselines, which Pyro keeps in its param store beside the parameters."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints

from sgc.capture.state.param_store import current_store

BASELINE_PREFIX = "__baseline_avg_downstream_cost_"


def present_averages() -> dict[str, Tensor]:
    """The averages in Pyro's store by name."""
    return {name: t for name, t in current_store().tensors().items() if name.startswith(BASELINE_PREFIX)}


def take_averages() -> dict[str, Tensor]:
    """Remove the averages from Pyro's store and return them."""
    store, taken = current_store(), present_averages()
    for name in taken:
        store.forget(name)
    return taken


def put_averages(averages: dict[str, Tensor]) -> None:
    """Put averages into Pyro's store."""
    store = current_store()
    for name, tensor in averages.items():
        store.put(name, tensor, constraints.real)
