"""What a run of training gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RunResult:
    """What a run of training gives.

    ``losses`` is a float tensor on the CPU, of one loss (minus the ELBO, in nats) for each step. ``seconds`` is how
    long the run took, captures and compilations included.
    """

    losses: Tensor
    seconds: float

    def __str__(self) -> str:
        count = len(self.losses)
        last = f", the mean loss of the last {min(count, 100)}: {self.losses[-100:].mean():.4f}" if count else ""
        return f"{count} steps in {self.seconds:.1f} s{last}"
