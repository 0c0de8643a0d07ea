"""What is compared. The names are light; a system's library is imported in the process that runs it."""

from __future__ import annotations

from importlib import import_module

from benchmarks.systems.base import System

AT_ONCE = "sgc, svi.step at once"
STEP, RUN, LOOP = "sgc, svi.step", "sgc, svi.run", "sgc, loss + backward + Adam"
PYRO, NUMPYRO_STEP, NUMPYRO_RUN, BOUND = "Pyro", "NumPyro, jit(update)", "NumPyro, lax.scan", "by hand, Inductor"

SYSTEMS = {
    STEP: ("compiled", "SviStep"),
    AT_ONCE: ("compiled", "SviStepAtOnce"),
    RUN: ("compiled", "SviRun"),
    LOOP: ("compiled", "Loop"),
    PYRO: ("eager", "Pyro"),
    "Pyro, no validation": ("eager", "PyroUnvalidated"),
    "Pyro Jit": ("eager", "PyroJit"),
    NUMPYRO_STEP: ("jax", "JitUpdate"),
    NUMPYRO_RUN: ("jax", "Scan"),
    BOUND: ("by_hand", "ByHand"),
}
"""The module and class of each system, in the order of the table."""

TABLE = [name for name in SYSTEMS if name != AT_ONCE]
"""Those of the table of steps: that one differs in its first steps alone, which have a table of their own."""

CACHED = {STEP, AT_ONCE, RUN, LOOP, BOUND}
"""Those that Inductor compiles, and keeps on disk for the next process."""


def system_class(name: str) -> type[System]:
    """Import the system's module."""
    module, cls = SYSTEMS[name]
    found: type[System] = getattr(import_module(f"benchmarks.systems.{module}"), cls)
    return found
