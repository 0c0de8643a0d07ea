"""A program and its arguments, as the prototype run and the capture run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sgc.config import Options


@dataclass(frozen=True)
class ProgramCall:
    """A model and a guide, the arguments that both are called with, and the options that they are compiled with."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Options
