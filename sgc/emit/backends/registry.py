"""The backends by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends.eager import Eager
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.protocol import Backend
from sgc.emit.backends.torchscript import TorchScript
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.optimize import Report
from sgc.errors import BackendError

_BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Inductor(), Eager(), TorchScript())}

UNCOMPILED = Eager.name
"""Runs modules as they were traced, which takes no time to build."""

TIERS = (Eager.name, Inductor.name)
"""What a loss runs on at first, and after some calls, where no backend is named."""


def backend_of(name: str) -> Backend:
    """The backend of this name.

    :raises BackendError: if there is none.
    """
    backend = _BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None:
        raise BackendError(f"unknown backend {name!r}", remedy=f"use one of {names()}")
    return backend


def names() -> tuple[str, ...]:
    """The names of the backends, the default one first."""
    return tuple(_BACKENDS)


@contextmanager
def registered(backend: Backend) -> Iterator[None]:
    """Within, a backend is there under its name, also in the place of another one: for tests and measurements.

    What was captured before keeps the backends that it was captured for.
    """
    before = dict(_BACKENDS)
    _BACKENDS[backend.name] = backend
    try:
        yield
    finally:
        _BACKENDS.clear()
        _BACKENDS.update(before)


@dataclass(frozen=True)
class Built:
    """A callable, the module that it computes, and how that was rewritten (not at all for the eager backend)."""

    run: Runner
    module: fx.GraphModule
    report: Report


def build(module: fx.GraphModule, tensors: Sequence[Tensor], backend: str, rng: Rng) -> Built:
    """A callable that computes what ``module`` computes on tensors like ``tensors``.

    :param module: a graph of aten operators that returns a list of tensors.
    :param tensors: examples of the inputs; those that the module writes into are copied before any run.
    :raises BackendError: if the backend is unknown, or cannot work on this machine; the text says what to install.
    """
    examples: list[Any] = [tensor.detach() for tensor in tensors]
    by_name = backend_of(backend)
    optimized = by_name.after_gradient(module, examples, rng)
    return Built(by_name.build(optimized, examples, rng), optimized.module, optimized.report)
