"""The losses of a run: on their device, or as numbers, until someone asks for them; and the result that has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgc.errors import SgcError
from sgc.table import Table
from sgc.training.callbacks.monitored import Monitored
from sgc.training.loss_curve import loss_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    :param epoch_ends: how many steps were taken by the end of each epoch that was gone through.
    :param data_size: how many data each loss is of, where subsampling plates say so.
    :param stopped: why a callback has ended the run before its last step; None if none has.
    :param monitored: what the monitor has recorded; None if there was none.
    """

    losses: Tensor
    seconds: float
    epoch_ends: tuple[int, ...] = ()
    data_size: int | None = None
    stopped: str | None = None
    monitored: Monitored | None = None

    @property
    def epoch_losses(self) -> Tensor:
        """The mean loss of the steps of each epoch that was gone through, of shape ``[epochs]``; NaN without steps."""
        starts = (0, *self.epoch_ends)
        means = [self.losses[start:end].mean() for start, end in zip(starts, self.epoch_ends, strict=False)]
        return torch.stack(means) if means else torch.empty(0, dtype=self.losses.dtype)

    @property
    def losses_per_datum(self) -> Tensor:
        """Each loss over ``data_size``.

        :raises sgc.errors.SgcError: if that is not known.
        """
        if self.data_size is None:
            raise SgcError(
                "how many data these losses are of is said by no subsampling plate, or not by all alike",
                remedy="divide result.losses or result.epoch_losses by their number",
            )
        return self.losses / self.data_size

    def __str__(self) -> str:
        count = len(self.losses)
        last = f", the mean loss of the last {min(count, 100)}: {self.losses[-100:].mean():.4f}" if count else ""
        stopped = "" if self.stopped is None else f"; stopped: {self.stopped}"
        return f"{count} steps in {self.seconds:.1f} s{last}{stopped}"

    __repr__ = __str__

    def plot(self, axes: Axes | None = None) -> Axes:
        """The losses over the steps, and the mean of each epoch; needs matplotlib."""
        if axes is None:
            import matplotlib.pyplot as plt

            _, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
        axes.plot(range(1, len(self.losses) + 1), self.losses, linewidth=0.8)
        if self.epoch_ends:
            axes.plot(self.epoch_ends, self.epoch_losses, marker="o", label="mean of the epoch")
            axes.legend()
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats")
        return axes

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("steps", str(len(self.losses))), ("seconds", f"{self.seconds:.1f}")]
        if len(self.losses):
            last = self.losses[-100:]
            rows += [
                ("first loss", f"{self.losses[0]:.4f}"),
                ("last loss", f"{self.losses[-1]:.4f}"),
                (f"mean loss of the last {len(last)}", f"{last.mean():.4f}"),
            ]
        if self.epoch_ends:
            rows += [("epochs", str(len(self.epoch_ends))), ("loss of the last", f"{self.epoch_losses[-1]:.4f}")]
        if self.data_size is not None:
            rows.append(("data", str(self.data_size)))
        if self.stopped is not None:
            rows.append(("stopped", self.stopped))
        return rows

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        table = Table("run of training", (), tuple(self._rows()), frozenset())
        below = [loss_curve(self.losses), self.monitored.table.to_html() if self.monitored else ""]
        return {"text/plain": str(self), "text/html": table.to_html(below="".join(below))}
