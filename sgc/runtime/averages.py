"""The running averages of decaying-average baselines, which Pyro keeps in its param store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from sgc.graph.nodes import BaselineNode
from sgc.guards.metadata import Alike
from sgc.native import conditions
from sgc.native.conditions import Condition
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX, names_of
from sgc.tracing.state.param_store import PYROS, Store


class Averages:
    """The averages of some baselines, created as zeros where the param store has none.

    sgc keeps them where Pyro does, so that either can go on where the other stopped. The first shape met has Pyro's
    name, each other shape (of a ragged last batch) an average of its own. One that has a row for each datum has the
    shape of all data, whatever the batch.

    :param nodes: the baselines, in the order of the emitted module's inputs.
    :param store: where the averages are.
    """

    def __init__(self, nodes: Sequence[BaselineNode], store: Store = PYROS) -> None:
        self.nodes = nodes
        self._store = store
        self._asked: list[str] = []
        self._taken: list[int] = []
        self._alike: Alike | None = None

    def names(self) -> list[str]:
        """Their names in Pyro's param store."""
        self.tensors()
        return [self._asked[i] for i in self._taken]

    def tensors(self) -> list[Tensor]:
        """The averages that are there now."""
        # Which name an average has depends on what is found under the names before it: all are asked again.
        averages: list[Any] = self._store.fetch(self._asked)
        if self._alike is None or not self._alike.hold(averages):
            averages = self._find()
        return [averages[i] for i in self._taken]

    def conditions(self) -> list[Condition]:
        """Where these are true, :meth:`tensors` gives what it gave last."""
        if self._alike is None:
            return []
        return [
            *self._store.conditions(self._asked),
            conditions.alike([self._store.read(name) for name in self._asked], self._alike.check),
        ]

    def _find(self) -> list[Tensor]:
        averages: list[Tensor] = []
        self._asked, self._taken = [], []
        for node in self.nodes:
            shape = node.average_shape
            for name in names_of(BASELINE_PREFIX + node.site, shape):
                average = self._kept(name, node)
                if tuple(average.shape) == shape and average.device != node.device:
                    average = average.detach().to(node.device)  # the program has moved, or the store was loaded there
                    self._store.put(name, average)
                self._asked.append(name)
                averages.append(average)
                if tuple(average.shape) == shape:
                    # Pyro marks its averages as requiring gradients; they are written in place here.
                    average.requires_grad_(False)
                    break
            else:
                raise AssertionError("an average of the second name has its own shape")
            self._taken.append(len(averages) - 1)
        self._alike = Alike(averages)
        return averages

    def _kept(self, name: str, node: BaselineNode) -> Tensor:
        """What the store has under a name; zeros of the average's shape if it had nothing."""
        average = self._store.get(name)
        if average is None:
            average = torch.zeros(node.average_shape, dtype=node.dtype, device=node.device)
            self._store.put(name, average, constraints.real)
        return average


def put_in_store(store: Store, name: str, value: Tensor) -> Tensor:
    """Give an average of a store a value; the tensor there, which stays if it has the value's shape and dtype."""
    kept = store.get(name)
    if kept is not None and kept.shape == value.shape and kept.dtype == value.dtype:
        with torch.no_grad():
            return kept.copy_(value)
    average = value.detach().to(value.device if kept is None else kept.device, copy=True)
    store.put(name, average, constraints.real)
    return average
