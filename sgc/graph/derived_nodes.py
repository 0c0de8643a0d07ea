"""The typed payloads of what the passes make of costs: terms, totals, and the objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.cost_sums import DownstreamCostNode, SummedCostsNode, costs_summed
from sgc.graph.enumeration_nodes import ExpectedCostNode
from sgc.graph.nodes import BaselineNode, CostNode, Payload, Stage
from sgc.graph.program import Particles

if TYPE_CHECKING:
    from sgc.graph.graph import StochasticGraph


@dataclass(frozen=True)
class DifferenceNode(Payload):
    """One node minus another of the same shape."""

    kind: ClassVar[str] = "difference"

    minuend: str
    subtrahend: str

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return DownstreamCostNode, BaselineNode

    def computed_from(self) -> tuple[str, ...]:
        return self.minuend, self.subtrahend

    def compute(self, run: Arithmetic) -> Value:
        """The difference."""
        return run.call(torch.sub, run.value(self.minuend), run.value(self.subtrahend))


@dataclass(frozen=True)
class UnaryNode(Payload):
    """What is computed from one other node."""

    operand: str

    def computed_from(self) -> tuple[str, ...]:
        return (self.operand,)


@dataclass(frozen=True)
class DetachNode(UnaryNode):
    """The value of a node, through which no gradient passes."""

    kind: ClassVar[str] = "detach"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return DownstreamCostNode, DifferenceNode

    def compute(self, run: Arithmetic) -> Value:
        """The detached value."""
        return run.call(torch.detach, run.value(self.operand))


@dataclass(frozen=True)
class SurrogateTermNode(Payload):
    """One term of the surrogate, a scalar with a sign; the surrogate loss is minus their sum.

    Its types are those of the objective (``CostTermNode``, ``EntropyTermNode``) and of the estimators
    (``ScoreTermNode``, ``BaselineTermNode``).
    """

    kind: ClassVar[str] = "surrogate term"
    noun: ClassVar[str]
    """What it is, for the printed graph."""

    site: str
    operands: tuple[str, ...]

    @property
    def is_total(self) -> bool:
        return True

    def computed_from(self) -> tuple[str, ...]:
        return self.operands


@dataclass(frozen=True)
class TotalNode(Payload):
    """``elbo`` (the sum of all elements of the cost nodes) or ``surrogate`` (the sum of the surrogate terms)."""

    kind: ClassVar[str] = "total"

    operands: tuple[str, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return CostNode, SummedCostsNode, SurrogateTermNode, ExpectedCostNode

    def computed_from(self) -> tuple[str, ...]:
        return self.operands

    def compute(self, run: Arithmetic) -> Value:
        """The sum, a scalar."""
        return signed_sum(run, ((run.total(key), run.is_subtracted(key)) for key in self.operands))


def signed_sum(run: Arithmetic, addends: Iterable[tuple[Value, bool]]) -> Value:
    """The sum of some values, each with whether it is subtracted; zero if there are none."""
    total: Value | None = None
    for value, subtracted in addends:
        if total is None:
            total = run.call(torch.neg, value) if subtracted else value
        else:
            total = run.call(torch.sub if subtracted else torch.add, total, value)
    return total if total is not None else run.call(torch.zeros, ())


def sum_in_words(graph: StochasticGraph, operands: Sequence[str]) -> str:
    """A sum of costs or terms, for the printed graph: ``2 log p terms - 1 log q term``."""
    addends: Counter[tuple[str, bool]] = Counter()
    summed = [key for operand in operands for key in costs_summed(graph, operand)]
    for payload in map(graph.payload, summed):
        noun = payload.noun if isinstance(payload, (SurrogateTermNode, CostNode)) else payload.kind
        addends[noun, payload.subtracted] += 1
    words = [
        f"{'-' if subtracted else '+'} {count} {noun}{'s' * (count > 1)}"
        for (noun, subtracted), count in addends.items()
    ]
    sums = [payload for payload in map(graph.payload, operands) if isinstance(payload, SummedCostsNode)]
    weighted = sum(len(costs_summed(graph, node.key)) for node in sums)
    how = "weighted by the probabilities of enumerated values"
    if graph.program is not None and any(site.has_samples for site in graph.program.sites):
        how = "averaged over values or samples side by side"
    note = f", {weighted} of them {how}" if weighted else ""
    return (" ".join(words).removeprefix("+ ") or "0") + note


def particles_in_words(particles: Particles) -> str:
    """How many there are, and how they run."""
    how = f"in the plate {particles.plate}" if particles.plate else "one after another"
    return f"{particles.count} particles, {how}" if particles.count > 1 else "1 particle"


@dataclass(frozen=True)
class OfAllParticlesNode(Payload):
    """A scalar that is made of all particles: what a loss is minus."""

    particles: Particles

    def stage(self) -> Stage:
        return Stage.PARTICLES

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """All are made of the same particles."""
        if self.particles != graph.particles:
            yield f"{self.key!r} and others are not of the same particles"

    def words(self) -> str:
        """What it is, for the printed graph."""
        return self.key

    def short_words(self) -> str:
        """The same in a picture."""
        return "the ELBO"

    def made_of(self, graph: StochasticGraph) -> Iterator[str]:
        """What it is made of, for the printed graph: a line each."""
        yield from ()


@dataclass(frozen=True)
class MeanNode(OfAllParticlesNode):
    """The mean of a total over all particles."""

    kind: ClassVar[str] = "mean"

    operand: str

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (TotalNode,)

    def computed_from(self) -> tuple[str, ...]:
        return (self.operand,)

    def words(self) -> str:
        over = f", the mean over {particles_in_words(self.particles)}" if self.particles.count > 1 else ""
        return f"{self.operand}{over}"

    def made_of(self, graph: StochasticGraph) -> Iterator[str]:
        """The sum that the total is."""
        total = graph.payload(self.operand)
        assert isinstance(total, TotalNode)
        yield f"{total.key}: {sum_in_words(graph, total.operands)}"

    def compute(self, run: Arithmetic) -> Value:
        """The mean over the particles of one call of the module; that over its calls is for the caller."""
        total, *others = run.in_every_run(self.operand)
        for value in others:
            total = run.call(torch.add, total, value, name="particles")
        count = self.particles.in_a_call
        return run.call(torch.div, total, count, name="particles") if count > 1 else total


@dataclass(frozen=True)
class NegationNode(UnaryNode):
    """Minus a node: a loss."""

    kind: ClassVar[str] = "negation"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (OfAllParticlesNode,)

    def stage(self) -> Stage:
        return Stage.PARTICLES

    def compute(self, run: Arithmetic) -> Value:
        """The negated value."""
        return run.call(torch.neg, run.value(self.operand))
