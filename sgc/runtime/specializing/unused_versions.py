"""Whether a call that fits no specialization is worth another one: some programs differ at each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgc.runtime.specializing.specialization import Specialization

_UNUSED = 3
"""While as many specializations have served no call but the one that they were captured for, no other is made ..."""

_PATIENCE = 8
"""... but after this many calls without one, as the unused may be those of a beginning; then after more."""


class NotWorthCapturing(Exception):
    """A call fits no specialization, and another one would most likely serve this call alone."""


@dataclass
class UnusedVersions:
    """Counts the calls that were not captured since the last one that was.

    :param patience: how many there are to be before the next capture.
    """

    patience: int = _PATIENCE
    waited: int = 0
    is_told: bool = False
    """Whether a warning has said that some are not."""

    def allow(self, kept: Sequence[Specialization]) -> bool:
        """Whether a call that none of the specializations fits is to be captured."""
        if sum(not known.is_reused for known in kept) < _UNUSED:
            self.patience, self.waited = _PATIENCE, 0
            return True
        self.waited += 1
        if self.waited <= self.patience:
            return False
        self.patience, self.waited = 4 * self.patience, 0
        return True
