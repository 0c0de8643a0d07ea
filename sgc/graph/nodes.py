"""The typed payloads of a stochastic computation graph's nodes (Schulman et al. 2015, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch

from sgc.errors import SourceLine
from sgc.graph.program import InputKind, Plate, SiteKind


class Estimator(Enum):
    """How the gradient of the ELBO passes through a latent site."""

    PATHWISE = "pathwise"
    PARTIAL = "partially pathwise"
    SCORE_FUNCTION = "score function"


@dataclass(frozen=True)
class Payload:
    """Common to all nodes: the key in the graph, and the fx node of the program (or of the emitted module)."""

    kind: ClassVar[str]

    key: str
    shape: tuple[int, ...]

    def attributes(self) -> dict[str, str]:
        """Plain attributes, for networkx's writers and drawing tools."""
        return {"kind": self.kind, "shape": str(list(self.shape)), "label": self.key}


@dataclass(frozen=True)
class InputNode(Payload):
    """A parameter, data, buffer or constant."""

    kind: ClassVar[str] = "input"

    fx: str
    role: InputKind
    dtype: str
    requires_grad: bool

    def attributes(self) -> dict[str, str]:
        return {**super().attributes(), "role": self.role.value, "dtype": self.dtype}


@dataclass(frozen=True)
class SiteNode(Payload):
    """A sample statement: a stochastic node if it is latent or a subsample, else a deterministic one."""

    kind: ClassVar[str] = "site"

    fx: str | None
    role: SiteKind
    distribution: str
    dtype: str
    plates: tuple[Plate, ...]
    has_rsample: bool
    scale: float | str | None
    masked: bool
    opaque: bool
    source: SourceLine | None
    estimator: Estimator | None = None

    def attributes(self) -> dict[str, str]:
        extra = {
            "role": self.role.value,
            "distribution": self.distribution,
            "dtype": self.dtype,
            "plates": ", ".join(plate.name for plate in self.plates),
        }
        if self.estimator is not None:
            extra["estimator"] = self.estimator.value
        if self.source is not None:
            extra["source"] = str(self.source)
        return {**super().attributes(), **extra}


@dataclass(frozen=True)
class CostNode(Payload):
    """One plate-shaped log-density term with its sign in the ELBO: ``+log p`` or ``-log q``."""

    kind: ClassVar[str] = "cost"

    fx: str
    site: str
    sign: int
    plates: tuple[Plate, ...]
    source: SourceLine | None

    def attributes(self) -> dict[str, str]:
        return {**super().attributes(), "sign": "+" if self.sign > 0 else "-", "site": self.site}


@dataclass(frozen=True)
class ScorePartNode(Payload):
    """``score_function`` or ``entropy_term`` of a guide site (Pyro's ``ScoreParts``)."""

    kind: ClassVar[str] = "score part"

    fx: str
    site: str
    part: str


@dataclass(frozen=True)
class BaselineInputNode(Payload):
    """What the user gave as a baseline: ``baseline_value``, or ``nn_baseline`` of its detached input."""

    kind: ClassVar[str] = "baseline input"

    fx: str
    site: str
    source: SourceLine | None


@dataclass(frozen=True)
class PartialSumNode(Payload):
    """A sum of cost nodes and other partial sums of the same frames, shared between downstream costs."""

    kind: ClassVar[str] = "partial sum"

    plates: frozenset[Plate]
    addends: tuple[str, ...]


@dataclass(frozen=True)
class Reduction:
    """An addend of a downstream cost: which node, the dims to sum over (kept), then the ones squeezed away."""

    addend: str
    dims: tuple[int, ...]
    leading_ones: int


@dataclass(frozen=True)
class DownstreamCostNode(Payload):
    """The downstream cost of a site: the cost nodes whose provenance holds it, summed to the site's plates."""

    kind: ClassVar[str] = "downstream cost"

    site: str
    costs: frozenset[str]
    terms: tuple[Reduction, ...]


@dataclass(frozen=True)
class BaselineNode(Payload):
    """A site's baseline: ``decaying average + (nn_baseline or baseline_value)``, whichever are given.

    ``learned`` is the key of the baseline input (None: there is none), ``average`` the name of the buffer that
    holds the running average (None: not used), ``beta`` its decay; ``dtype`` and ``device`` are the average's.
    """

    kind: ClassVar[str] = "baseline"

    site: str
    learned: str | None
    average: str | None
    beta: float
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class SurrogateTermNode(Payload):
    """One term of the surrogate, ELBO-signed; the surrogate loss is minus their sum.

    ``role`` is ``"cost"`` (a log p term), ``"entropy"`` (minus an entropy term), ``"score"``
    (score function times the detached difference of downstream cost and baseline) or ``"baseline"``
    (minus the squared error of a learned baseline).
    """

    kind: ClassVar[str] = "surrogate term"

    role: str
    site: str
    operands: tuple[str, ...]


@dataclass(frozen=True)
class TotalNode(Payload):
    """``elbo`` (the sum of the cost nodes) or ``surrogate`` (the sum of the surrogate terms)."""

    kind: ClassVar[str] = "total"

    operands: tuple[str, ...]
