"""Patches of torch and Pyro that hold for one thread only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any
from unittest import mock


def here(replacement: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls ``replacement`` on the current thread and ``original`` on all others."""
    thread = get_ident()

    def either(*args: Any, **kwargs: Any) -> Any:
        return (replacement if get_ident() == thread else original)(*args, **kwargs)

    return either


def replaced_here(owner: Any, name: str, replacement: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Inside, the current thread finds another function under an attribute; others find the one that is there now."""
    return mock.patch.object(owner, name, here(replacement, getattr(owner, name)))


def ignored(*args: Any) -> None:
    """A hook that does nothing."""
