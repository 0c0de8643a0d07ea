"""Lets sgc run the graphs that it gives to Inductor operator by operator instead, after all its rewrites."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from sgc.emit.backends.registry import registered
from tests.backends import RunGraphs


def run_rewritten(wanted: bool) -> AbstractContextManager[None]:
    """Within, the "inductor" backend compiles nothing; nothing is changed if it is not ``wanted``."""
    return registered(RunGraphs(rewritten=True)) if wanted else nullcontext()
