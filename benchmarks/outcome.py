"""What was found out about one system on one workload."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from benchmarks.worker import First, Turn


@dataclass
class Outcome:
    """Times in seconds, memory in MiB."""

    cold: First | None = None
    warm: First | None = None
    """In a fresh process that finds what an earlier one compiled; ``None`` where nothing is kept."""
    turns: list[Turn] = field(default_factory=list)
    failure: str | None = None

    @property
    def works(self) -> bool:
        return self.failure is None and bool(self.turns)

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(turn.step for turn in self.turns)

    @property
    def loss(self) -> tuple[float, float]:
        """The mean loss and its standard error, over all steps."""
        count = sum(turn.count for turn in self.turns)
        mean = sum(turn.count * turn.mean for turn in self.turns) / count
        squares = sum((turn.count - 1) * turn.variance + turn.count * (turn.mean - mean) ** 2 for turn in self.turns)
        return mean, math.sqrt(squares / (count - 1) / count)


Outcomes = dict[str, Outcome]


def ratio(above: Outcome | None, below: Outcome | None) -> float | None:
    """Of the medians, or ``None`` if one of them does not work."""
    return above.median / below.median if above and below and above.works and below.works else None


def disagreements(outcomes: Outcomes, errors: float = 5.0, relative: float = 1e-5) -> list[str]:
    """A line for each pair of systems whose mean losses differ by more than chance and rounding allow.

    :param errors: how many standard errors of the difference are allowed.
    :param relative: what single precision may change besides, as a part of the loss.
    """
    working = [(name, *outcome.loss) for name, outcome in outcomes.items() if outcome.works]
    lines = []
    for i, (one, mean, error) in enumerate(working):
        for other, other_mean, other_error in working[i + 1 :]:
            allowed = errors * math.hypot(error, other_error) + relative * abs(mean)
            if not abs(mean - other_mean) <= allowed:  # written so that NaN is a disagreement
                lines.append(
                    f"**Warning**: the mean losses of {one} and {other} differ: {mean:.4f} and {other_mean:.4f}, "
                    f"standard errors {error:.4f} and {other_error:.4f}."
                )
    return lines
