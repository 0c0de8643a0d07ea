"""What sgc notes on the nodes of an fx graph, in their ``meta``: each note under a key with a type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import fx

_Note = TypeVar("_Note")
_PREFIX = "sgc"


@dataclass(frozen=True)
class MetaKey(Generic[_Note]):
    """A key of ``fx.Node.meta``, which starts with ``sgc``."""

    name: str

    def of(self, node: fx.Node) -> _Note | None:
        """The note on a node, None if it has none."""
        note: _Note | None = node.meta.get(self.name)
        return note

    def put(self, node: fx.Node, note: _Note) -> None:
        """Note it on a node."""
        node.meta[self.name] = note


ABOUT: MetaKey[str] = MetaKey("sgc")
"""What the node is for, for people who read the graph: an input, a site, a cost node, a baseline."""

SITE: MetaKey[str] = MetaKey("sgc_mark")
"""The site whose value the node is."""

DRAWS: MetaKey[bool] = MetaKey("sgc_random")
"""Whether a node of the user's own Python draws random numbers."""

KEEPS: MetaKey[object] = MetaKey("sgc_keeps")
"""What must live as long as the node: an opaque call, which its operator finds by a number."""

IS_GRADIENT: MetaKey[bool] = MetaKey("sgc_gradient")
"""Whether the node is the gradient of a parameter: the optimizer's update begins after it."""

IS_LITERAL: MetaKey[bool] = MetaKey("sgc_literal")
"""Whether a literal of the program is passed for the input that the node is."""

ORIGIN = "sgc_origin"
DRAW = "sgc_draw"
"""Keys of ``meta["custom"]``, which torch hands on to the nodes that it traces from a node: its name, and the number
of a draw in the order of the program."""


def inherit(node: fx.Node, origin: fx.Node) -> None:
    """Give a node what is noted on the node that it stands for."""
    node.meta.update({key: note for key, note in origin.meta.items() if key.startswith(_PREFIX)})
