"""Pyro's check that observed data are in the support of their distribution, as a guard of the compiled program."""

from __future__ import annotations

from torch import Tensor

from sgc.capturing.reads import Reads
from sgc.capturing.recording import Recording, samples
from sgc.errors import DataDependenceError


def guard_observed_data(recording: Recording, reads: Reads) -> None:
    """Add a guard for each observed site whose value and support follow from the inputs and which has no mask.

    When the guard fails, Pyro runs the program once and raises its own error.
    """
    for site in samples(recording.model_trace):
        if not site["is_observed"] or not isinstance(site["value"], Tensor) or site["mask"] is not None:
            continue
        known = len(reads.guards)
        try:
            inside = site["fn"].support.check(site["value"]).all()
            holds = bool(reads.evaluate(inside, "a check of observed data"))
        except (DataDependenceError, NotImplementedError, AttributeError, ValueError):
            continue  # a support that depends on a sample, or that nobody can check
        if not holds:
            del reads.guards[known:]  # Pyro has accepted it: its validation is off
        for guard in reads.guards[known:]:
            guard.source, guard.validates = recording.recorder.statements[site["name"]].source, True
