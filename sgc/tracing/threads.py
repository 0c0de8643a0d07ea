"""Patches of torch and Pyro that hold for one thread only."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any


def here(replacement: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls ``replacement`` on the current thread and ``original`` on all others."""
    thread = get_ident()

    def either(*args: Any, **kwargs: Any) -> Any:
        return (replacement if get_ident() == thread else original)(*args, **kwargs)

    return either


def ignored(*args: Any) -> None:
    """A hook that does nothing."""
