"""What a captured program says of sites that have all their values, and of the sums over these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Enumerated:
    """A site that has all its values at once, or several samples.

    ``dim`` is the dim that they are in, counted from the right of a log density; None if the program is run once for
    each (``"sequential"``). ``samples`` says that they are draws, not the values of the support.
    """

    size: int
    dim: int | None
    samples: bool


@dataclass(frozen=True)
class Marginal:
    """The log of a sum, over the values of enumerated sites of the model, of a product of densities.

    ``factors`` are the sites whose densities these are, ``eliminated`` those that are summed out; ``plates`` are the
    names of the plates that it has an element for each of. ``sums`` is the number of sums that it takes, ``largest``
    the shape of the largest table that one is taken over.
    """

    node: str
    factors: tuple[str, ...]
    eliminated: tuple[str, ...]
    plates: tuple[str, ...]
    sums: int
    largest: tuple[int, ...]


def factors_of(marginals: Iterable[Marginal]) -> frozenset[str]:
    """The sites whose densities in the model are factors of a sum over others."""
    return frozenset(site for marginal in marginals for site in marginal.factors)


@dataclass(frozen=True)
class ExpectedCost:
    """A scalar: a cost, weighted by the guide's probabilities of the enumerated values and by DiCE factors, and summed.

    ``cost`` is a site of the model (+1) or guide (-1), or the position of a marginal; ``weights`` are the sites of the
    guide whose probability or factor is in the weight.
    """

    node: str
    cost: tuple[str, int] | int
    weights: tuple[str, ...]
