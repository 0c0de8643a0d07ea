"""The losses of a run: on their device, or as numbers, until someone asks for them; and the result that has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgc.html_table import html_table
from sgc.training.loss_curve import loss_curve


@dataclass
class Losses:
    """Losses in the order of their steps; ``count`` says how many."""

    count: int = 0
    _parts: list[Tensor] = field(default_factory=list)
    _numbers: list[float] = field(default_factory=list)  # those behind the parts, and what dtype they have
    _dtype: torch.dtype | None = None

    def add(self, losses: Tensor) -> None:
        """Add losses, of shape ``[steps]``."""
        self._gather()
        self._parts.append(losses)
        self.count += len(losses)

    def add_number(self, loss: float, dtype: torch.dtype) -> None:
        """Add the loss of a step on the CPU."""
        if dtype is not self._dtype:
            self._gather()
            self._dtype = dtype
        self._numbers.append(loss)
        self.count += 1

    def all(self) -> Tensor:
        """All of them, of shape ``[count]``, on the CPU."""
        self._gather()
        one_device = len({part.device for part in self._parts}) == 1
        parts = self._parts if one_device else [part.cpu() for part in self._parts]
        return torch.cat(parts).cpu() if parts else torch.empty(0)

    def last(self, count: int) -> list[float]:
        """The last ``count`` losses, or all if there are fewer."""
        losses = self._numbers[-count:]
        parts: list[Tensor] = []
        missing = count - len(losses)
        for part in reversed(self._parts):
            if missing <= 0:
                break
            parts.insert(0, part[-missing:])
            missing -= len(parts[0])
        if len({part.device for part in parts}) > 1:
            parts = [part.cpu() for part in parts]
        return [*(torch.cat(parts).tolist() if parts else []), *losses]

    def _gather(self) -> None:
        if self._numbers:
            self._parts.append(torch.tensor(self._numbers, dtype=self._dtype, device="cpu"))
            self._numbers = []


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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        rows = [("steps", str(len(self.losses))), ("seconds", f"{self.seconds:.1f}")]
        if len(self.losses):
            last = self.losses[-100:]
            rows += [
                ("first loss", f"{self.losses[0]:.4f}"),
                ("last loss", f"{self.losses[-1]:.4f}"),
                (f"mean loss of the last {len(last)}", f"{last.mean():.4f}"),
            ]
        table = html_table("run of training", (), rows, below=loss_curve(self.losses))
        return {"text/plain": str(self), "text/html": table}
