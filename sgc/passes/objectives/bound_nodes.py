"""The typed payloads of bounds that take all particles together: log weights, bounds, what multiplies scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgc.graph import keys
from sgc.graph.arithmetic import Arithmetic, Value
from sgc.graph.derived_nodes import (
    OfAllParticlesNode,
    SurrogateTermNode,
    UnaryNode,
    particles_in_words,
    signed_sum,
    sum_in_words,
)
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, Payload, ScorePartNode, Stage
from sgc.graph.program import Particles
from sgc.passes.choose_estimators import scored_sites


@dataclass(frozen=True)
class LogWeightNode(Payload):
    """The sum of all costs of a particle, for each element of the plates that all sites are in.

    ``terms`` are the costs, each with the dims over which it is summed.
    """

    kind: ClassVar[str] = "log weight"

    terms: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (CostNode,)

    def computed_from(self) -> tuple[str, ...]:
        return tuple(cost for cost, _ in self.terms)

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """It has every cost, once."""
        if sorted(self.computed_from()) != sorted(graph.costs()):
            yield f"{self.key!r} is not the sum of all costs"

    def compute(self, run: Arithmetic) -> Value:
        """The sum, each cost with its sign."""
        return signed_sum(run, ((_summed(run, cost, dims), run.is_subtracted(cost)) for cost, dims in self.terms))


def _summed(run: Arithmetic, key: str, dims: tuple[int, ...]) -> Value:
    """A value, summed over some dims."""
    value = run.value(key)
    return run.call(torch.sum, value, dims) if dims else value


def _log_mean_exp(run: Arithmetic, weights: Value, alpha: float, count: int, dim: int = 0) -> Value:
    """``1/(1-alpha) log mean exp((1-alpha) weights)``, over a dim of size ``count``."""
    if alpha:
        weights = run.call(torch.mul, weights, 1 - alpha)
    mean = run.call(torch.sub, run.call(torch.logsumexp, weights, dim), math.log(count))
    return run.call(torch.div, mean, 1 - alpha) if alpha else mean


@dataclass(frozen=True)
class BoundsNode(UnaryNode):
    """Rényi's bound of order ``alpha``, of the log weights of all particles, for each element."""

    kind: ClassVar[str] = "bounds"

    alpha: float
    particles: Particles

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (LogWeightNode,)

    def stage(self) -> Stage:
        return Stage.RUNS

    def compute(self, run: Arithmetic) -> Value:
        """The log of the mean over all particles."""

        def bounds() -> Value:
            if self.particles.plate is not None:
                weights = run.value(self.operand)
            else:
                weights = run.call(torch.stack, run.in_every_run(self.operand))
            return _log_mean_exp(run, weights, self.alpha, self.particles.count)

        return run.once(self.key, bounds)


@dataclass(frozen=True)
class FactorNode(Payload):
    """What the score functions of a particle are multiplied by, for each element."""

    def stage(self) -> Stage:
        return Stage.RUNS


@dataclass(frozen=True)
class NormalisedWeightNode(FactorNode):
    """The weight of a particle among all, over ``1 - alpha``."""

    kind: ClassVar[str] = "normalised weight"

    alpha: float
    particles: Particles

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return LogWeightNode, BoundsNode

    def computed_from(self) -> tuple[str, ...]:
        return keys.LOG_WEIGHT, keys.BOUNDS

    def compute(self, run: Arithmetic) -> Value:
        """``exp((1-alpha) (l - bound)) / K / (1-alpha)``; before the last division the weights add up to one."""
        above = run.call(torch.sub, run.value(keys.LOG_WEIGHT), run.value(keys.BOUNDS))
        weight = run.call(torch.exp, run.call(torch.mul, above, 1 - self.alpha))
        return run.call(torch.div, weight, self.particles.count * (1 - self.alpha))


@dataclass(frozen=True)
class OthersBoundsNode(Payload):
    """The importance weighted bound in which the log weight of this particle is the mean of the others'."""

    kind: ClassVar[str] = "bounds of the others"
    crosses_particles: ClassVar[bool] = True

    particles: Particles

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (LogWeightNode,)

    def computed_from(self) -> tuple[str, ...]:
        return (keys.LOG_WEIGHT,)

    def stage(self) -> Stage:
        return Stage.RUNS

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """There are other particles, all at hand, and they are those of the objective."""
        if self.particles.count < 2 or self.particles.calls != 1:
            yield f"{self.key!r} has no other particles at hand"
        if keys.LOSS in graph and graph.particles != self.particles:
            yield f"{self.key!r} is of other particles than the objective"

    def compute(self, run: Arithmetic) -> Value:
        """The log mean of the others' weights and of their geometric mean."""
        count, own = self.particles.count, run.value(keys.LOG_WEIGHT)
        if self.particles.plate is None:
            others = run.in_every_run(keys.LOG_WEIGHT)
            others.remove(own)
            stacked = run.call(torch.stack, others)
            mean = run.call(torch.mean, stacked, 0, True)
            return _log_mean_exp(run, run.call(torch.cat, [stacked, mean], 0), 0.0, count)
        # Row k has the log weights of the others of particle k. Its own, which may be infinite, enters no sum.
        ones = run.call(torch.movedim, run.call(torch.ones_like, own), 0, -1)
        is_own = run.call(torch.gt, run.call(torch.diag_embed, ones, 0, 0, 1), 0)
        rows = run.call(torch.unsqueeze, own, 0)
        others_only = run.call(torch.where, is_own, run.call(torch.zeros_like, rows), rows)
        mean = run.call(torch.div, run.call(torch.sum, others_only, 1, True), count - 1)
        return _log_mean_exp(run, run.call(torch.where, is_own, mean, rows), 0.0, count, dim=1)


@dataclass(frozen=True)
class GainNode(FactorNode):
    """What a particle adds to the bound: the bound minus that of the others."""

    kind: ClassVar[str] = "gain"

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return BoundsNode, OthersBoundsNode

    def computed_from(self) -> tuple[str, ...]:
        return keys.BOUNDS, keys.OTHERS_BOUNDS

    def compute(self, run: Arithmetic) -> Value:
        """The difference."""
        return run.call(torch.sub, run.value(keys.BOUNDS), run.value(keys.OTHERS_BOUNDS))


@dataclass(frozen=True)
class BoundScoreTermNode(SurrogateTermNode):
    """The sum of a log density times a detached factor, which are the ``operands``; ``dims`` are summed first."""

    noun: ClassVar[str] = "score term"

    dims: tuple[int, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return CostNode, ScorePartNode, FactorNode

    def compute(self, run: Arithmetic) -> Value:
        """The sum of the products; a ``log q`` is without its sign."""
        score, factor = self.operands
        product = run.call(torch.mul, _summed(run, score, self.dims), run.call(torch.detach, run.value(factor)))
        return run.call(torch.sum, product, name=f"sum_{self.key}")


@dataclass(frozen=True)
class BoundNode(OfAllParticlesNode):
    """The sum of the bounds of all elements."""

    kind: ClassVar[str] = "bound"

    alpha: float

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (BoundsNode,)

    def computed_from(self) -> tuple[str, ...]:
        return (keys.BOUNDS,)

    def compute(self, run: Arithmetic) -> Value:
        """The sum."""
        return run.call(torch.sum, run.value(keys.BOUNDS))

    def short_words(self) -> str:
        return f"Rényi's bound of order {self.alpha:g}" if self.alpha else "the importance weighted bound"

    def words(self) -> str:
        return f"{self.key}, {self.short_words()} of {particles_in_words(self.particles)}"

    def made_of(self, graph: StochasticGraph) -> Iterator[str]:
        """The sum that each log weight is."""
        yield f"{keys.LOG_WEIGHT}: {sum_in_words(graph, (graph.payload(keys.LOG_WEIGHT).computed_from() or ()))}"


@dataclass(frozen=True)
class BoundSurrogateNode(OfAllParticlesNode):
    """The bound and the score terms of all particles, added up."""

    kind: ClassVar[str] = "surrogate"

    terms: tuple[str, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return BoundNode, BoundScoreTermNode

    def computed_from(self) -> tuple[str, ...]:
        return (keys.BOUND, *self.terms)

    def breaches(self, graph: StochasticGraph) -> Iterator[str]:
        """Every scored site has its term."""
        yield from super().breaches(graph)
        for site in scored_sites(graph):
            if keys.score_term(site) not in self.terms:
                yield f"the scored site {site!r} has no score term"

    def compute(self, run: Arithmetic) -> Value:
        """The sum."""
        total = run.value(keys.BOUND)
        for term in self.terms:
            for value in run.in_every_run(term):
                total = run.call(torch.add, total, value)
        return total

    def made_of(self, graph: StochasticGraph) -> Iterator[str]:
        """The bound and the score terms."""
        terms = f" + {sum_in_words(graph, self.terms)} of each particle" if self.terms else ""
        yield f"{self.key}: {keys.BOUND}{terms}"
