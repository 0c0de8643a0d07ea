"""Refuses densities that do not have an element for each value of the enumerated sites that they depend on.

Of such densities an expectation would be another number, in silence: elements of a plate that a density outside of it
depends on would all have the same value, and values that the program sums up, or looks at as one tensor, are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sgc.errors import EnumerationError
from sgc.graph.enumeration_nodes import MarginalCostNode
from sgc.graph.expectation_nodes import ProbabilityNode
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import CostNode
from sgc.graph.plan import LARGEST_TABLE, Plan
from sgc.graph.program import Site
from sgc.passes.expectations import values_of_cost


def check_enumeration(graph: StochasticGraph, plan: Plan) -> None:
    """Check every cost below a site that has all its values, and what is summed out of the model.

    :raises EnumerationError: if one has no dim for them, is outside of a plate of theirs, or has another batch dim; if
        a table is too large.
    """
    program = graph.program
    assert program is not None
    in_guide = {node.site: program.site(node.site) for node in graph.of_type(ProbabilityNode)}
    in_model = {name: program.site(name) for node in graph.of_type(MarginalCostNode) for name in node.eliminated}
    if not in_guide and not in_model:
        return
    for cost in graph.of_type(CostNode):
        enumerated = in_guide | in_model
        if isinstance(cost, MarginalCostNode):
            enumerated = in_guide
            _check_table(cost)
        values_in = dict(values_of_cost(graph, cost))
        _check_batch(program.shape(cost.fx), cost, values_in)
        for name in _read(graph, cost, enumerated):
            _check_plates(cost, enumerated[name])
            size = enumerated[name].enumerated
            assert size is not None
            if name not in values_in and size.size > 1:
                raise _error(
                    cost,
                    f"{cost.key} depends on the enumerated '{name}' and has no dim for its {size.size} values: they "
                    "were added up, or looked at as one tensor, or are out of the scope of their pyro.markov",
                    f"compute with '{name}' as with a batch, elementwise or by Vindex; or do not enumerate it",
                )


def _read(graph: StochasticGraph, cost: CostNode, enumerated: Mapping[str, Site]) -> set[str]:
    """The enumerated sites, or those with several samples, whose values the program computes a cost of."""
    read, seen, stack = set(), {cost.key}, list(graph.predecessors(cost.key))
    while stack:
        key = stack.pop()
        if key in seen:
            continue
        seen.add(key)
        if key in enumerated:
            read.add(key)
        of_key = enumerated[key].enumerated if key in enumerated else None
        if of_key is None or of_key.samples:  # what is above an enumerated site decides its probabilities alone
            stack += graph.predecessors(key)
    return read


def _check_table(cost: MarginalCostNode) -> None:
    if math.prod(cost.largest) > LARGEST_TABLE:
        raise _error(
            cost,
            f"{cost.key} takes a sum over a table of {list(cost.largest)}, and the limit is {LARGEST_TABLE} elements",
            "in a loop, put the statements within pyro.markov, so that fewer sites are joint; or sample some of the "
            "sites in the guide",
        )


def _check_plates(cost: CostNode, site: Site) -> None:
    outside = [plate for plate in site.plates if plate.vectorized and plate not in cost.plates]
    if outside and site.enumerated is not None:
        plate = outside[0]
        raise _error(
            cost,
            f"{cost.key} depends on all {plate.size} elements of '{site.name}' in plate '{plate.name}' jointly, which "
            f"would take {site.enumerated.size}**{plate.size} joint values",
            f"move it into the plate, or do not enumerate '{site.name}'",
        )


def _check_batch(shape: tuple[int, ...], cost: CostNode, values_in: dict[str, int]) -> None:
    known = {*values_in.values(), *(plate.dim for plate in cost.plates)}
    for dim in range(-len(shape), 0):
        if shape[dim] != 1 and dim not in known:
            raise _error(
                cost,
                f"{cost.key} has shape {list(shape)}, and its dim {dim} is neither a plate's nor one of enumerated "
                "values",
                "put it into a plate for each batch dim, call .to_event(n) on its distribution, or index by enumerated "
                "values with pyro.ops.indexing.Vindex",
            )


def _error(cost: CostNode, problem: str, remedy: str) -> EnumerationError:
    return EnumerationError(problem, site=cost.site, source=cost.source, remedy=remedy)
