"""The decaying averages of baselines, which Pyro keeps in its param store beside the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.distributions import constraints

from sgc.tracing.state.param_store import current_store

BASELINE_PREFIX = "__baseline_avg_downstream_cost_"


def names_of(plain: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """The names that an average of this shape may have: that of the shape that is met first, and its own."""
    return plain, f"{plain}_{'x'.join(map(str, shape)) or 'scalar'}"


def present_averages() -> dict[str, Tensor]:
    """The averages in Pyro's store by name."""
    return {name: t for name, t in current_store().tensors().items() if name.startswith(BASELINE_PREFIX)}


@contextmanager
def lent_averages(averages: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let Pyro's store hold copies of these averages and no others.

    It gives a dictionary that holds them afterwards, as they are then.
    """
    after: dict[str, Tensor] = {}
    before = _replace({name: average.detach().clone() for name, average in averages.items()})
    try:
        yield after
    finally:
        after.update(_replace(before))


def _replace(averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put averages into Pyro's store in the place of those that are there; these."""
    store, before = current_store(), present_averages()
    for name in before:
        store.forget(name)
    for name, tensor in averages.items():
        store.put(name, tensor, constraints.real)
    return before
