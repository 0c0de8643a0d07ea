"""The record of a tuning: what changes speed alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from sgc.emit.inductor.compilation import Compilation
from sgc.native.switches import is_on


@dataclass(frozen=True)
class Tuning:
    """What makes programs or their compilation faster, and changes no number that is defined.

    :param name: what it is switched off by.
    :param what: what it does, in a line.
    :param faster: steps, or the compilation; the other is not measured.
    :param device: where it is in use.
    :param options: options of Inductor for a compilation.
    :param patch: replaces private attributes of torch while a program is generated.
    """

    name: str
    what: str
    faster: Literal["steps", "compilation"]
    device: Literal["cpu", "cuda", "any"] = "cpu"
    options: Callable[[Compilation], dict[str, Any]] | None = None
    patch: Callable[[], AbstractContextManager[None]] | None = None

    def concerns(self, compilation: Compilation) -> bool:
        """Whether it is applied to a compilation."""
        return is_on(self.name) and self.device in ("any", "cpu" if compilation.on_cpu else "cuda")
