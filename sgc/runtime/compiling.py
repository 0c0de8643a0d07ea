"""Around whatever compiles: other threads wait, and what compilers leave behind is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sgc.runtime.generated_sources import forget_with, known_sources
from sgc.runtime.residue.leaked_tensors import without_leaks_into
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.turns import capturing
from sgc.tracing.leaves.autograd_functions import own_functions
from sgc.tracing.python.garbage import rarely_collected
from sgc.tracing.state.random_state import random_state, restore_random_state


@contextmanager
def compiling(specialization: Specialization) -> Iterator[None]:
    """Compilers draw random numbers and leave sources behind, and run the program's own functions."""
    with capturing():
        state, known = random_state(), known_sources()
        try:
            with rarely_collected(), without_leaks_into(own_functions(specialization.emitted.module)):
                yield
        finally:
            restore_random_state(state)
            forget_with(specialization, known)
