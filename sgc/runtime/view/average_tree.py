"""The averages that a loss module shows, saves, and restores: those of shapes that are still to come too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sgc.runtime.averages import Averages, put_in_store
from sgc.runtime.view.tensor_tree import TensorTree
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX, names_of
from sgc.tracing.state.owners import Owner, StoreOwner
from sgc.tracing.state.param_store import Store


class AverageTree(TensorTree):
    """The running averages of a loss module's baselines, under their names in Pyro's store without Pyro's prefix.

    A minibatch of another shape has an average of its own, which is made when that shape is first met. A saved state
    may have averages of shapes that this process has not met: they are put into the store, where the first call of
    their shape looks for them, and are saved again.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self.sites: set[str] = set()

    def put(self, name: str, tensor: Tensor, owner: Owner) -> Tensor | None:
        """Show an average under a name, which may have dots."""
        before = self._buffers.get(name)
        self._buffers[name], self._owners[name] = tensor, owner
        return before

    def show(self, averages: Averages) -> None:
        """Show the averages of a specialization."""
        self.sites.update(node.site for node in averages.nodes)
        for name, average in zip(averages.names(), averages.tensors(), strict=True):
            self._show(name.removeprefix(BASELINE_PREFIX), average)

    def show_names(self, names: Iterable[str]) -> None:
        """Show the averages of these names in the store: those of a branch that was not captured."""
        for name in names:
            average, site = self._store.get(name), name.removeprefix(BASELINE_PREFIX)
            if average is not None:
                self.sites.add(site)
                self._show(site, average)

    def unknown(self, values: Mapping[str, Tensor]) -> list[str]:
        """Those among saved averages that belong to no baseline of the program."""
        known = self._by_site(values)
        return sorted(name for name in values if not any(name in names for names in known.values()))

    def missing(self, values: Mapping[str, Tensor]) -> list[str]:
        """The averages shown here of whose baselines saved ones have none, of any shape."""
        known = self._by_site(values)
        own = self._by_site(self._shown())
        return sorted(name for site, names in own.items() if not known[site] for name in names)

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put saved averages back, in place where this process has one of the name and the shape.

        An average that a saved state lacks, while it has others of the same baseline, is forgotten: where it was saved,
        that shape had not been met.
        """
        known, own = self._by_site(values), self._by_site(self._shown())
        for site, names in known.items():
            for name in own[site] - names if names else ():
                self._store.forget(BASELINE_PREFIX + name)
                del self._buffers[name], self._owners[name]
            for name in names:
                self._show(name, put_in_store(self._store, BASELINE_PREFIX + name, values[name]))

    def _by_site(self, values: Mapping[str, Tensor]) -> dict[str, set[str]]:
        """For each site that is known to have an average, the names of its averages among some."""
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        return {s: {name for name, shape in shapes.items() if name in names_of(s, shape)} for s in self.sites}

    def _shown(self) -> dict[str, Tensor]:
        return {name: average for name, average in self._buffers.items() if average is not None}

    def _show(self, name: str, average: Tensor) -> None:
        self.put(name, average, StoreOwner(BASELINE_PREFIX + name, self._store))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What ``load_state_dict`` does with its own part."""
        values = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        unknown = self.unknown(values)
        missing_keys += _prefixed(prefix, self.missing(values))
        unexpected_keys += _prefixed(prefix, unknown) if strict else []
        self.restore({name: value for name, value in values.items() if name not in unknown})


def _prefixed(prefix: str, names: Iterable[str]) -> list[str]:
    return [prefix + name for name in names]
