"""Expectations over the values of enumerated sites of the guide, beside sites with other estimators.

With ``E(c)`` the enumerated sites upstream of a cost ``c``, and ``w_e`` the probabilities of the values of ``e``, the
ELBO is the sum of ``prod_{e in E(c)} w_e * c`` over all costs and values (Titsias and Lázaro-Gredilla 2015). One site
is eliminated after another, the last first: the costs that depend on it are added up, and their sum is multiplied by
``w_e`` and summed over its values. So a chain of T sites takes O(T) sums (variable elimination). For a score function
the sites above its own stay, and each of their values has a downstream cost of its own, weighted by the probability of
the value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from sgc.errors import EnumerationError
from sgc.graph import keys
from sgc.graph.cost_sums import Reduction, SummedCostsNode
from sgc.graph.enumeration_nodes import MarginalCostNode
from sgc.graph.expectation_nodes import ExpectationNode, MarginalProbabilityNode, ProbabilityNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode, ValuesIn
from sgc.graph.plan import LARGEST_TABLE
from sgc.graph.program import Plate

Frames = frozenset[Plate]


class Expectations:
    """Adds the expectations that others ask for to a graph; what is there already is taken again."""

    def __init__(self, graph: StochasticGraph) -> None:
        self.graph = graph
        self._probabilities = {node.site: node for node in graph.of_type(ProbabilityNode)}
        self._frames = {site: self._plates_of(site) for site in self._probabilities}
        self._known = {(node.site, node.plates, node.terms): node.key for node in graph.of_type(ExpectationNode)}
        self._marginals = {(node.site, node.factors): node.key for node in graph.of_type(MarginalProbabilityNode)}
        self._values_in: dict[str, ValuesIn] = {}

    def of(self, costs: Sequence[str], given: frozenset[str] = frozenset(), plates: Frames = frozenset()) -> list[str]:
        """The addends of the expectation of a sum of costs.

        :param costs: their keys.
        :param given: the enumerated sites of which each value stays apart, with all enumerated sites above them.
        :param plates: those of which each element stays apart.
        :returns: the keys of costs and expectations.
        """
        addends = list(costs)
        for site in reversed(self._probabilities):
            if site not in given:
                addends = self._summed_over(site, addends, plates)
        return addends

    def above(self, site: str) -> frozenset[str]:
        """The enumerated sites upstream of a latent site, itself if it has several samples."""
        if not self._probabilities:
            return frozenset()
        return self.graph.provenance(site) & self._probabilities.keys()

    def plates(self, key: str) -> Frames:
        """The plates that a cost, or a sum of costs, has elements for."""
        payload = self.graph.payload(key)
        assert isinstance(payload, (CostNode, SummedCostsNode))
        return frozenset(payload.plates)

    def values_in(self, key: str) -> ValuesIn:
        """The enumerated sites whose values a cost, a sum of costs or a probability has dims for."""
        if key not in self._values_in:
            self._values_in[key] = self._values_of(key)
        return self._values_in[key]

    def _values_of(self, key: str) -> ValuesIn:
        payload = self.graph.payload(key)
        if isinstance(payload, (ExpectationNode, ProbabilityNode, MarginalProbabilityNode)):
            return payload.values_in
        if isinstance(payload, CostNode):
            values_in = values_of_cost(self.graph, payload) if self._probabilities else ()
            return tuple((name, dim) for name, dim in values_in if name in self._probabilities)
        assert isinstance(payload, SummedCostsNode)
        return self.together([self.values_in(addend) for addend in payload.summed()])

    def together(self, parts: Iterable[ValuesIn]) -> ValuesIn:
        """The enumerated sites whose values the sum or product of some tensors has dims for.

        :raises EnumerationError: if two of them have their values in one dim.
        """
        dims: dict[str, int] = {}
        for part in parts:
            dims.update(part)
        sites: dict[int, str] = {}
        for name in self._probabilities:
            if name in dims and sites.setdefault(dims[name], name) != name:
                raise self._error(
                    name,
                    f"pyro.markov lets it and '{sites[dims[name]]}' have their values in one dim, and they are joint",
                    "give pyro.markov the history that the program has, or leave it out",
                )
        return tuple((name, dims[name]) for name in self._probabilities if name in dims)

    def probability_of(self, values_in: ValuesIn) -> tuple[str, ...]:
        """The keys of the factors of the joint probability of the values of some enumerated sites.

        The other sites that their probabilities depend on are summed out, the first first.
        """
        wanted = {site for site, _ in values_in}
        above = set(wanted)
        for site in reversed(self._probabilities):
            if site in above:
                above.update(name for name, _ in self._probabilities[site].values_in)
        factors = [self._probabilities[site].key for site in self._probabilities if site in above]
        for site in self._probabilities:
            if site in above and site not in wanted:
                with_site = [key for key in factors if site in dict(self.values_in(key))]
                if with_site:
                    kept = [key for key in factors if key not in with_site]
                    factors = [self._summed_out(site, tuple(with_site)), *kept]
        return tuple(factors)

    def _summed_out(self, site: str, factors: tuple[str, ...]) -> str:
        if (site, factors) in self._marginals:
            return self._marginals[site, factors]
        values_in = self.together(map(self.values_in, factors))
        shape, dim = self._shape(site, factors), dict(values_in)[site]
        key = keys.marginal_probability(site, len(self._marginals))
        node = MarginalProbabilityNode(
            key, _without(shape, dim), site, dim, factors, tuple(item for item in values_in if item[0] != site)
        )
        self.graph.add(node, factors)
        self._marginals[site, factors] = key
        return key

    def _summed_over(self, site: str, addends: list[str], plates: Frames) -> list[str]:
        """The addends without the dim of a site's values: those that have it are added up, in groups of same plates."""
        probability = self._probabilities[site]
        groups: dict[Frames, list[str]] = {}
        for key in addends:
            sites = dict(self.values_in(key))
            if site in sites:
                needed = [self._frames[name] for name in (*sites, *dict(probability.values_in))]
                groups.setdefault(self.plates(key) & plates.union(*needed), []).append(key)
        summed = {key for group in groups.values() for key in group}
        kept = [key for key in addends if key not in summed]
        return [*kept, *(self._expectation(probability, frames, group) for frames, group in groups.items())]

    def _expectation(self, probability: ProbabilityNode, frames: Frames, addends: list[str]) -> str:
        site, dim = probability.site, dict(probability.values_in)[probability.site]
        terms = tuple(Reduction(key, self._dims(key, frames)) for key in addends)
        if (site, frames, terms) in self._known:
            return self._known[site, frames, terms]
        values_in = self.together([probability.values_in, *map(self.values_in, addends)])
        shapes = [self._reduced(term) for term in terms]
        shape = self._check_size(site, tuple(torch.broadcast_shapes(probability.shape, *shapes)))
        node = ExpectationNode(
            key=keys.expectation(site, len(self._known)),
            shape=_without(shape, dim),
            plates=frames,
            site=site,
            dim=dim,
            probability=probability.key,
            terms=terms,
            detached=frozenset(key for key in addends if self._is_detached(key)),
            values_in=tuple(item for item in values_in if item[0] != site),
        )
        self.graph.add(node, node.computed_from())
        self._known[site, frames, terms] = node.key
        return node.key

    def _is_detached(self, key: str) -> bool:
        """Whether a cost is ``-log q`` of a site that has no entropy term."""
        cost = self.graph.payload(key)
        assert self.graph.program is not None
        if not isinstance(cost, CostNode) or key != keys.cost_key(cost.site, -1):
            return False
        return keys.score_part("entropy_term", cost.site) not in self.graph

    def _dims(self, key: str, frames: Frames) -> tuple[int, ...]:
        shape = self.graph.value_shape(key)
        dims = sorted((plate.dim or 0 for plate in self.plates(key) - frames), reverse=True)
        return tuple(dim for dim in dims if shape[dim] != 1)

    def _reduced(self, term: Reduction) -> tuple[int, ...]:
        shape = list(self.graph.value_shape(term.addend))
        for dim in term.dims:
            shape[dim] = 1
        return tuple(shape)

    def _shape(self, site: str, factors: Sequence[str]) -> tuple[int, ...]:
        shapes = [self.graph.payload(key).shape for key in factors]
        return self._check_size(site, tuple(torch.broadcast_shapes(*shapes)))

    def _check_size(self, site: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > LARGEST_TABLE:
            raise self._error(
                site,
                f"the sum over its values is of a table of {list(shape)}, and the limit is {LARGEST_TABLE} elements",
                "in a loop, put the statements within pyro.markov, so that fewer sites are joint; or enumerate fewer",
            )
        return shape

    def _plates_of(self, site: str) -> Frames:
        assert self.graph.program is not None
        density = self.graph.program.site(site).guide
        assert density is not None
        return frozenset(plate for plate in density.plates if plate.vectorized)

    def _error(self, site: str, problem: str, remedy: str) -> EnumerationError:
        assert self.graph.program is not None
        return EnumerationError(problem, site=site, source=self.graph.program.site(site).source, remedy=remedy)


def values_of_cost(graph: StochasticGraph, cost: CostNode) -> ValuesIn:
    """The enumerated sites whose values a cost has dims for, those of the guide first; a closed form has those of both
    densities, a marginal cost those of all factors that are not summed out.
    """
    program = graph.program
    assert program is not None
    gone: tuple[str, ...] = ()
    if isinstance(cost, MarginalCostNode):
        gone = cost.eliminated
        factors = [factor for factor in map(graph.payload, cost.factors) if isinstance(factor, CostNode)]
        known = [program.site(factor.site).model for factor in factors]
    else:
        site = program.site(cost.site)
        known = [site.model, site.guide]
    densities = [density for density in known if density is not None]
    own = [density for density in densities if density.log_prob == cost.fx]
    values_in = {item for density in own or densities for item in program.values_in(density, cost.fx)}
    order = (*program.guide_order, *program.model_order)
    return tuple(sorted((item for item in values_in if item[0] not in gone), key=lambda item: order.index(item[0])))


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(1 if place - len(shape) == dim else size for place, size in enumerate(shape))
