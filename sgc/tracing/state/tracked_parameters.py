"""Parameters whose first values come from a tensor that Pyro tracks because it depends on a sample.

Pyro's store holds them in the wrapper of that tensor, which no capture can follow, and trains the tensor within.
"""

from __future__ import annotations

from typing import Any

from pyro.ops.provenance import ProvenanceTensor, detach_provenance
from pyro.poutine.messenger import Messenger

from sgc.errors import CaptureError, SourceLine
from sgc.tracing.source import current_line
from sgc.tracing.state.param_store import Store


class TrackedParameters(Messenger):
    """Around the eager run: takes the parameters that it makes out of their wrappers afterwards.

    Those that were in the store before stay as they are, for an optimizer may know them by their identity.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._before = set(self._wrapped())
        self._asked: dict[str, SourceLine | None] = {}

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._before and msg["name"] not in self._asked:
            self._asked[msg["name"]] = current_line()

    def unwrap(self) -> None:
        """Put the tensors themselves into the store for the parameters of the run.

        :raises CaptureError: if it asked for one that was wrapped before.
        """
        for name, line in self._asked.items():
            raise CaptureError(
                "the parameter was made by Pyro of a tensor that depends on a sample, before sgc has seen the program",
                site=name,
                source=line,
                remedy="give it a first value that depends on no sample (torch.ones(2), say), "
                "or call pyro.clear_param_store(), so that it is made anew",
            )
        for name in set(self._wrapped()) - self._before:
            self._store.put(name, detach_provenance(self._store.tensors()[name]))

    def _wrapped(self) -> list[str]:
        return [name for name, tensor in self._store.tensors().items() if isinstance(tensor, ProvenanceTensor)]
