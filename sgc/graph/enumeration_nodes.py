"""Nodes of what is summed over enumerated values: marginal costs, costs with their weights; shapes without values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from sgc.graph.nodes import CostNode, Payload, ProgramTermNode, ScorePartNode
from sgc.graph.program import Plate


@dataclass(frozen=True)
class FactorDensityNode(CostNode):
    """A ``log p`` that is a factor of a marginal cost, which the ELBO has in its place."""

    kind: ClassVar[str] = "factor"


@dataclass(frozen=True)
class MarginalCostNode(CostNode):
    """The log of a sum over the values of ``eliminated`` sites of the model of the product of densities ``factors``.

    ``site`` is the first of the sites that are summed out, ``factors`` are the keys of the densities; ``plates`` are
    those that are left. It is computed by ``sums`` sums, one after another, the largest of them over a table of the
    shape ``largest``.
    """

    kind: ClassVar[str] = "marginal cost"

    factors: tuple[str, ...]
    eliminated: tuple[str, ...]
    sums: int
    largest: tuple[int, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return (FactorDensityNode,)

    @property
    def noun(self) -> str:
        return self.kind


@dataclass(frozen=True)
class ExpectedCostNode(ProgramTermNode):
    """The sum of all elements of a cost, each weighted by the guide: by the probability of its enumerated values, and
    by DiCE factors, which are one and bring the score functions.

    ``cost`` is the key of the cost, or marginal cost; ``weights`` are the sites that the weight is of.
    """

    kind: ClassVar[str] = "expected cost"

    cost: str
    weights: tuple[str, ...]

    @classmethod
    def may_depend_on(cls) -> tuple[type[Payload], ...]:
        return CostNode, ScorePartNode

    @property
    def is_total(self) -> bool:
        return True


def without_enumeration(shape: tuple[int, ...], plates: Iterable[Plate], event_dims: int = 0) -> tuple[int, ...]:
    """A shape without the dims of enumerated values, which are to the left of the plates.

    :param event_dims: how many dims are to the right of the plates.
    """
    kept = event_dims + max((-plate.dim for plate in plates if plate.dim is not None), default=0)
    return shape[max(0, len(shape) - kept) :]
