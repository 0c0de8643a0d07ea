"""Sequential plates over a random subsample: ``for i in pyro.plate("data", 100, subsample_size=5)``.

Pyro yields each index as a Python number, which a compiled program cannot have: the numbers are drawn anew at each
call. During a capture the plate yields 0-d tensors instead. They index tensors, and in a site's name
(``f"x_{i}"``, ``"x_%d" % i``) they stand for their position in the subsample, which tells the sites apart just as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor

from sgc.graph.effects import is_random
from sgc.tracing import tracer
from sgc.tracing.threads import replaced_here


@contextmanager
def subsamples_as_tensors(positions: dict[int, tuple[Tensor, str]]) -> Iterator[None]:
    """Let sequential plates yield tensors, and note in ``positions`` what each stands for in a name."""
    original = IndepMessenger.__iter__

    def iterate(self: Any) -> Iterator[Any]:
        indices = self.indices
        if not isinstance(indices, Tensor) or not _is_drawn(indices):
            yield from original(self)
            return
        if self._vectorized is True or self.dim is not None:
            raise ValueError(f"cannot use plate {self.name} as both vectorized and non-vectorized")
        self._vectorized = False
        self.dim = None
        for position, index in enumerate(indices.unbind()):
            positions[id(index)] = (index, str(position))
            self.next_context()
            with self:
                yield index

    with replaced_here(IndepMessenger, "__iter__", iterate):
        yield


def _is_drawn(indices: Tensor) -> bool:
    """Whether the indices are random: a plate's own draw, marked as its subsample."""
    node = tracer.node_of(indices)
    origin = node.args[0] if node.args else None
    while hasattr(origin, "args") and not is_random(origin) and origin.args:  # type: ignore[union-attr, arg-type]
        origin = origin.args[0]  # type: ignore[union-attr]
    return hasattr(origin, "args") and is_random(origin)  # type: ignore[arg-type]
