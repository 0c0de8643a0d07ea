"""What a capture replaces for a while in torch's and Pyro's classes is replaced for its own thread."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any


def here(replacement: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is ``replacement`` for the thread that calls this now, and ``original`` for others."""
    thread = get_ident()

    def either(*args: Any, **kwargs: Any) -> Any:
        return (replacement if get_ident() == thread else original)(*args, **kwargs)

    return either


def ignored(*args: Any) -> None:
    """What a hook is for other threads."""
