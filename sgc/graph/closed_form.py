"""The closed form of the two densities of a site, which the program computes where the plan asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sgc.graph.nodes import ProgramTermNode


@dataclass(frozen=True)
class ClosedFormNode(ProgramTermNode):
    """``KL(q || p)`` of a site, which may stand for its two cost nodes."""

    kind: ClassVar[str] = "closed form"
