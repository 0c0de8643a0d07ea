"""The running averages of decaying-average baselines, which Pyro keeps in its param store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from sgc.capturing.parameters import StoreOwner, in_store
from sgc.capturing.rehearsal import BASELINE_PREFIX
from sgc.graph.nodes import BaselineNode
from sgc.native import watch
from sgc.native.watch import Condition
from sgc.run.metadata import Alike


class Averages:
    """The averages of some baselines, created as zeros where Pyro's store has none.

    sgc keeps them where Pyro does, so that either can go on where the other stopped. The first shape met has Pyro's
    name, each other shape (of a ragged last batch) an average of its own.

    :param nodes: the baselines, in the order of the emitted module's inputs.
    """

    def __init__(self, nodes: Sequence[BaselineNode]) -> None:
        self.nodes = nodes
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
        found: list[Any] = list(map(pyro.get_param_store()._params.get, self._asked))
        if self._alike is None or not self._alike.hold(found):
            found = self._find()
        return [found[i] for i in self._taken]

    def conditions(self) -> list[Condition]:
        """Where these are true, :meth:`tensors` gives what it gave last."""
        if self._alike is None:
            return []
        return [
            *in_store(self._asked),
            watch.alike([StoreOwner(name).read() for name in self._asked], self._alike.check),
        ]

    def _find(self) -> list[Tensor]:
        found: list[Tensor] = []
        self._asked, self._taken = [], []
        for node in self.nodes:
            for name in names_of(BASELINE_PREFIX + node.site, node.shape):
                average = _kept(name, node)
                if tuple(average.shape) == node.shape and average.device != node.device:
                    average = _moved(name, average, node.device)
                self._asked.append(name)
                found.append(average)
                if tuple(average.shape) == node.shape:
                    # Pyro marks its averages as requiring gradients; they are written in place here.
                    average.requires_grad_(False)
                    break
            else:
                raise AssertionError("an average of the second name has its own shape")
            self._taken.append(len(found) - 1)
        self._alike = Alike(found)
        return found


def names_of(plain: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """The names that an average of this shape may have: that of the shape that is met first, and its own."""
    return plain, f"{plain}_{'x'.join(map(str, shape)) or 'scalar'}"


def put_in_store(name: str, value: Tensor) -> Tensor:
    """Give an average of Pyro's store a value; the tensor there, which stays if it has the value's shape and dtype."""
    store = pyro.get_param_store()
    kept: Tensor | None = store._params.get(name)
    if kept is not None and kept.shape == value.shape and kept.dtype == value.dtype:
        with torch.no_grad():
            return kept.copy_(value)
    device = value.device if kept is None else kept.device
    take_from_store(name)
    return _hold(name, value.detach().to(device, copy=True))


def take_from_store(name: str) -> None:
    """Let Pyro's store forget an average, if it has it."""
    store = pyro.get_param_store()
    if name in store._params:
        del store[name]


def _hold(name: str, average: Tensor) -> Tensor:
    store = pyro.get_param_store()
    store._params[name] = average
    store._param_to_name[average] = name
    store._constraints[name] = constraints.real
    return average


def _kept(name: str, node: BaselineNode) -> Tensor:
    """What Pyro's store has under a name; zeros of the baseline's shape if it had nothing."""
    kept: Tensor | None = pyro.get_param_store()._params.get(name)
    return _hold(name, torch.zeros(node.shape, dtype=node.dtype, device=node.device)) if kept is None else kept


def _moved(name: str, average: Tensor, device: torch.device) -> Tensor:
    """The average on another device: the program has moved, or the store was loaded there."""
    take_from_store(name)
    return _hold(name, average.detach().to(device))
