"""What a monitor has recorded: columns of numbers, a table, curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgc.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS = 20
"""The printed table has about so many rows, spread over the run."""

_SITES = 3
"""It has a column for the share of each of so many sites, those with the largest at the end."""


@dataclass(frozen=True)
class Record:
    """One record, made after ``step`` steps; what was not measured is missing or NaN."""

    step: int
    elbo: float
    gradient_norms: dict[str, float]
    variance: float
    shares: dict[str, float]


@dataclass(frozen=True)
class Monitored:
    """What an :class:`sgc.Monitor` has recorded, as columns: tensors on the CPU of one entry a record.

    NaN stands where something was not recorded: a parameter that was not there yet, say.
    """

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def steps(self) -> Tensor:
        """After how many steps, int64."""
        return torch.tensor([record.step for record in self.records], dtype=torch.int64, device="cpu")

    @property
    def elbo(self) -> Tensor:
        """The mean ELBO of the steps since the record before, in nats, float64."""
        return _column([record.elbo for record in self.records])

    @property
    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of a draw of the gradient in all (unconstrained) parameters, float64."""
        return _column([_whole(record.gradient_norms) for record in self.records])

    @property
    def gradient_norms(self) -> dict[str, Tensor]:
        """The norm of its part in each parameter, by name."""
        return self._named(lambda record: record.gradient_norms)

    @property
    def variance(self) -> Tensor:
        """The variance of the gradient, summed over the elements of all parameters, float64."""
        return _column([record.variance for record in self.records])

    @property
    def shares(self) -> dict[str, Tensor]:
        """The part of the variance that each site's term has, by site; the parts add up to 1."""
        return self._named(lambda record: record.shares)

    def columns(self) -> dict[str, Tensor]:
        """All columns by name; what ``pandas.DataFrame`` takes. There are none for what was not recorded at all."""
        columns = {"step": self.steps, "elbo": self.elbo}
        if any(record.gradient_norms for record in self.records):
            columns["gradient_norm"] = self.gradient_norm
            columns |= {f"gradient_norm/{name}": values for name, values in self.gradient_norms.items()}
        if any(record.shares for record in self.records):
            columns["variance"] = self.variance
            columns |= {f"share/{name}": values for name, values in self.shares.items()}
        return columns

    def _named(self, of: Callable[[Record], dict[str, float]]) -> dict[str, Tensor]:
        names = dict.fromkeys(name for record in self.records for name in of(record))
        return {name: _column([of(record).get(name, math.nan) for record in self.records]) for name in names}

    @cached_property
    def table(self) -> Table:
        """Records that are spread over the run, the last among them, with the shares of the largest sites."""
        columns = self.columns()
        shares = sorted(self.shares, key=lambda name: self.records[-1].shares.get(name, 0.0), reverse=True)
        wanted = ["step", "elbo", "gradient_norm", "variance", *(f"share/{name}" for name in shares[:_SITES])]
        wanted = [name for name in wanted if name in columns]
        every = max(1, -(-len(self) // _ROWS))
        places = range(len(self) - 1, -1, -every)[::-1]
        rows = tuple(tuple(_shown(name, columns[name][place].item()) for name in wanted) for place in places)
        head = tuple(name.replace("share/", "share of ").replace("_", " ").replace("elbo", "ELBO") for name in wanted)
        return Table("monitored", head, rows, frozenset(range(len(wanted))))

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.table._repr_mimebundle_()

    def plot(self) -> list[Axes]:
        """Curves over the steps, one under another, of what was recorded; needs matplotlib."""
        import matplotlib.pyplot as plt

        columns = self.columns()
        wanted = [name for name in ("elbo", "gradient_norm", "variance") if name in columns]
        size = (6, 2.2 * len(wanted))
        _, axes = plt.subplots(len(wanted), figsize=size, sharex=True, squeeze=False, layout="constrained")
        drawn: list[Axes] = list(axes[:, 0])
        for axis, name in zip(drawn, wanted, strict=True):
            axis.plot(columns["step"], columns[name])
            axis.set_ylabel({"elbo": "ELBO, nats"}.get(name, name.replace("_", " ")))
            if name != "elbo":
                axis.set_yscale("log")
        drawn[-1].set_xlabel("step")
        return drawn


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _whole(norms: dict[str, float]) -> float:
    return math.hypot(*norms.values()) if norms else math.nan


def _shown(name: str, value: float) -> str:
    if name == "step":
        return str(int(value))
    return (
        "" if math.isnan(value) and name != "elbo" else f"{value:.1%}" if name.startswith("share/") else f"{value:.4g}"
    )
