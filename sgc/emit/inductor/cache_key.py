"""Tells Inductor's cache by which version of sgc a program was generated.

Methods of Inductor are replaced while a program is generated, of which its cache knows nothing: it would go on to give
what an earlier version of sgc has generated.
"""

from __future__ import annotations

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from sgc.emit.inductor.tuning import lean_wrapper, plain_strides
from sgc.emit.inductor.workarounds import boolean_masks, concatenated_memory, order_of_draws, reads_before_writes

_SOURCES = tuple(
    str(module.__file__)
    for module in (boolean_masks, reads_before_writes, order_of_draws, concatenated_memory, plain_strides, lean_wrapper)
)


class Generator(CustomGraphPass):
    """A pass that changes nothing. Passes are part of the key."""

    def __call__(self, graph: fx.Graph) -> None:
        pass

    def uuid(self) -> bytes:
        """Another one for other sources."""
        return get_hash_for_files(_SOURCES)
