"""The typed payloads of a stochastic computation graph's nodes (Schulman et al. 2015, section 2.1).

Each type of node says what it may depend on, which nodes it is computed from, and by which rule; the verifier and the
emitter ask it. A type that only one estimator or objective has stands in that one's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

import torch

from sgc.errors import SourceLine
from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.program import InputKind, Plate, SiteKind

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


ValuesIn = tuple[tuple[str, int], ...]
"""The enumerated sites whose values a tensor has dims for, each with its dim, negative; in the guide's order."""


@dataclass(frozen=True)
class Estimator:
    """How the gradient of the ELBO passes through a latent site: an estimator of ``sgc/passes/estimators`` by its name.

    ``scored`` says whether it has a score-function term, with a downstream cost and perhaps a baseline.
    """

    value: str
    scored: bool

    PATHWISE: ClassVar[Estimator]
    PARTIAL: ClassVar[Estimator]
    SCORE_FUNCTION: ClassVar[Estimator]
    ENUMERATED: ClassVar[Estimator]
    DICE: ClassVar[Estimator]

    def __reduce__(self) -> str | tuple[type[Estimator], tuple[str, bool]]:
        return Estimator, (self.value, self.scored)


Estimator.PATHWISE = Estimator("pathwise", scored=False)
Estimator.PARTIAL = Estimator("partially pathwise", scored=True)
Estimator.SCORE_FUNCTION = Estimator("score function", scored=True)
Estimator.ENUMERATED = Estimator("enumerated", scored=False)
Estimator.DICE = Estimator("score function (DiCE)", scored=False)


class Stage(IntEnum):
    """When a node's rule is applied: in each run, for each run once all are there, or once for all particles."""

    RUN = 0
    RUNS = 1
    PARTICLES = 2


@dataclass(frozen=True)
class Payload:
    """Common to all nodes: the key in the graph, and the shape of the value."""

    kind: ClassVar[str]
    crosses_particles: ClassVar[bool] = False
    """Whether it is computed from other particles' values."""

    key: str
    shape: tuple[int, ...]

    def attributes(self) -> dict[str, str]:
        """Plain attributes, for networkx's writers and drawing tools."""
        return {"kind": self.kind, "shape": str(list(self.shape)), "label": self.key}

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        """The types of node that there may be an edge from."""
        return ()

    @property
    def subtracted(self) -> bool:
        """Whether sums take its value with a minus."""
        return False

    @property
    def is_total(self) -> bool:
        """Whether its value is a scalar to which all elements were added up."""
        return False

    def computed_from(self) -> tuple[str, ...] | None:
        """The keys of the nodes that the rule asks for; None if the program computes the value itself."""
        return None

    def stage(self) -> Stage:
        """What the rule must wait for, besides the nodes that the value is computed from."""
        return Stage.RUN

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """Its own laws: what is wrong with it in a graph."""
        yield from ()

    def compute(self, run: Arithmetic) -> Value:
        """The rule: the value in one run, of the values of other nodes."""
        raise NotImplementedError(f"a {self.kind} node has no value in an emitted module")


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
    asked: bool = False
    measured: bool = False

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return SiteNode, InputNode

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
class ProgramTermNode(Payload):
    """What the program itself computes of a site, at the fx node ``fx``: a density, or what a baseline is made of."""

    fx: str
    site: str

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return SiteNode, InputNode

    def compute(self, run: Arithmetic) -> Value:
        """The value as the program has it, a log density without the sign."""
        return run.of_program(self.fx)


@dataclass(frozen=True)
class CostNode(ProgramTermNode):
    """One plate-shaped log-density term with its sign in the ELBO: ``+log p`` or ``-log q``.

    ``shape`` is without the dims of enumerated values.
    """

    kind: ClassVar[str] = "cost"

    sign: int
    plates: tuple[Plate, ...]
    source: SourceLine | None

    def attributes(self) -> dict[str, str]:
        return {**super().attributes(), "sign": "+" if self.sign > 0 else "-", "site": self.site}

    @property
    def subtracted(self) -> bool:
        return self.sign < 0

    @property
    def noun(self) -> str:
        """What it is, for the printed graph."""
        return "log q term" if self.subtracted else "log p term"

    def remark(self, graph: StochasticGraph) -> str:
        """What the printed graph says of it beside its shape and provenance."""
        return ""


@dataclass(frozen=True)
class ScorePartNode(ProgramTermNode):
    """``score_function`` or ``entropy_term`` of a guide site (Pyro's ``ScoreParts``)."""

    kind: ClassVar[str] = "score part"

    part: str


@dataclass(frozen=True)
class BaselineInputNode(ProgramTermNode):
    """What the user gave as a baseline: ``baseline_value``, or ``nn_baseline`` of its detached input."""

    kind: ClassVar[str] = "baseline input"

    source: SourceLine | None


@dataclass(frozen=True)
class PlateRowsNode(BaselineInputNode):
    """The numbers of the rows of its data that a plate has in a step, for an average with a row for each datum."""

    kind: ClassVar[str] = "plate rows"

    plate: str


@dataclass(frozen=True)
class BaselineNode(Payload):
    """A site's baseline: ``decaying average + (nn_baseline or baseline_value)``, whichever are given.

    ``learned`` is the key of the baseline input (None: there is none), ``average`` the name of the buffer that
    holds the running average (None: not used), ``beta`` its decay; ``dtype`` and ``device`` are the average's.
    """

    kind: ClassVar[str] = "baseline"

    site: str
    learned: str | None = None
    average: str | None = None
    beta: float = 0.0
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (BaselineInputNode,)

    @property
    def average_shape(self) -> tuple[int, ...]:
        """The shape of the buffer that holds the running average."""
        return self.shape

    def computed_from(self) -> tuple[str, ...]:
        return (self.learned,) if self.learned else ()

    def compute(self, run: Arithmetic) -> Value:
        """The average as it was before this run, which moves it on, plus what was learned."""
        total = self.moved_average(run) if self.average is not None else None
        if self.learned is not None:
            learned = run.value(self.learned)
            total = learned if total is None else run.call(torch.add, total, learned)
        assert total is not None
        return total

    def moved_average(self, run: Arithmetic) -> Value:
        """The running average as it is, before it moves on by the downstream cost of this run."""
        average = run.average(self.key)
        cost = run.call(torch.detach, run.value(keys.downstream(self.site)))
        old = run.call(torch.clone, average, name="average")
        fresh = run.call(torch.mul, cost, 1 - self.beta, name="average")
        kept = run.call(torch.mul, old, self.beta, name="average")
        run.call(torch.ops.aten.copy_.default, average, run.call(torch.add, fresh, kept, name="average"), name="update")
        return old

    def words(self) -> str:
        """What it is, for the printed graph; what a learned one is learned from is added there."""
        return f"decaying average (beta {self.beta})" if self.average else ""
