"""Fixtures of the training tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from sgc.emit.backends.registry import registered
from tests.backends import UncompiledSteps


@pytest.fixture
def uncompiled() -> Iterator[UncompiledSteps]:
    """Whole-step graphs run as they are: the same tracing, binding and guards, without seconds of C++ compilation."""
    backend = UncompiledSteps()
    with registered(backend):
        yield backend


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as Python has it. In a process that a shell runs in the background, the signal is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
