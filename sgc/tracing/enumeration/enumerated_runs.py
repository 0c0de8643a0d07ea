"""Runs model and guide with discrete sites enumerated, and takes the expectation of the costs.

The runs, the contraction and the weights are those of Pyro's ``TraceEnum_ELBO`` (``pyro.infer.traceenum_elbo``,
``pyro.ops.contract``; Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs"; DiCE: Foerster et
al. 2018), taken apart into the terms that are summed, so that the graph can hold each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import LifoQueue
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import iter_discrete_escape, iter_discrete_extend
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import MarginalRing
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from sgc.tracing.enumeration.summed_out import MarginalTerm, check_sizes, marginal_terms, model_factors, sums_that_fuse
from sgc.tracing.sample_sites import samples

Program = Callable[..., Any]


def enumerating(model: Program, guide: Program, first_dim: int) -> tuple[Program, Callable[[], Iterator[Program]]]:
    """Model and guide with what asks for it enumerated: sites of the model to the left of those of the guide.

    :param first_dim: the rightmost dim, negative, that a site may be enumerated in.
    :returns: the model; and what gives the guide anew for each joint value of its sequentially enumerated sites. It is
        to be asked for the next only when the one before it and the model have run.
    """
    pending: LifoQueue[Trace] = LifoQueue()
    queued: Program = poutine.queue(
        EnumMessenger(first_available_dim=first_dim)(guide),
        pending,
        escape_fn=iter_discrete_escape,
        extend_fn=iter_discrete_extend,
    )

    def guides() -> Iterator[Program]:
        pending.put(Trace())
        while not pending.empty():
            yield queued

    return EnumMessenger()(model), guides


def name_in_run(name: str, number: int, runs: int) -> str:
    """The name of a site in one of several runs of the program, each with other values of its sites."""
    return name if runs == 1 else f"{name} (run {number + 1})"


def named_apart(pairs: list[tuple[Trace, Trace]]) -> list[tuple[Trace, Trace]]:
    """The traces of several runs with the sites under names of their own."""
    runs = len(pairs)
    return [
        (_renamed(model, number, runs), _renamed(guide, number, runs)) for number, (model, guide) in enumerate(pairs)
    ]


def _renamed(trace: Trace, number: int, runs: int) -> Trace:
    if runs == 1:
        return trace
    renamed = Trace()
    for site in samples(trace):
        name = name_in_run(site["name"], number, runs)
        renamed.add_node(name, **{**site, "name": name})
    return renamed


def joined(traces: Iterable[Trace]) -> Trace:
    """One trace with the sites of several, which are named apart."""
    first, *others = traces
    if not others:
        return first
    whole = Trace()
    for trace in (first, *others):
        for site in samples(trace):
            whole.add_node(site["name"], **site)
    return whole


@dataclass(frozen=True)
class ExpectedTerm:
    """A scalar: the sum of a cost over its plates, weighted by what the guide gives to the enumerated values.

    :param cost: what is weighted: a site of the model (+1) or guide (-1), or a marginal term by its position.
    :param weights: the sites of the guide whose probabilities, or whose DiCE factors, the weight is the product of.
    """

    value: Tensor
    cost: tuple[str, int] | int
    weights: tuple[str, ...]


def expectation(model_trace: Trace, guide_trace: Trace) -> tuple[list[MarginalTerm], list[ExpectedTerm]]:
    """The terms whose sum is the ELBO of one run: Pyro's ``_compute_dice_elbo``, a term at a time.

    :param model_trace: with ``log_prob`` and ``unscaled_log_prob`` at its sites; packed.
    :param guide_trace: with ``score_parts`` too; packed.
    :raises EnumerationError: if a density has no size that fits, or joint sites are in plates that are not nested.
    """
    check_sizes(model_trace, guide_trace)
    tables: list[tuple[int, ...]] = []
    with sums_that_fuse(tables):
        return _terms(model_trace, guide_trace, tables)


def _terms(
    model_trace: Trace, guide_trace: Trace, tables: list[tuple[int, ...]]
) -> tuple[list[MarginalTerm], list[ExpectedTerm]]:
    costs, factors, ordering, sum_dims, scale = model_factors(model_trace, guide_trace)
    own = {id(site["packed"]["log_prob"]): (site["name"], +1) for site in samples(model_trace)}
    terms: dict[Any, list[tuple[Tensor, tuple[str, int] | int]]] = {
        ordinal: [(cost, own[id(cost)]) for cost in of_ordinal] for ordinal, of_ordinal in costs.items()
    }
    marginals: list[MarginalTerm] = []
    for ordinal, marginal in marginal_terms(model_trace, guide_trace, factors, sum_dims, scale, tables):
        terms.setdefault(ordinal, []).append((marginal.value, len(marginals)))
        marginals.append(marginal)
    for site in samples(guide_trace):
        cost = packed.neg(site["packed"]["log_prob"])
        terms.setdefault(ordering[site["name"]], []).append((cost, (site["name"], -1)))
    return marginals, list(_expected(guide_trace, ordering, terms))


def _expected(
    guide_trace: Trace, ordering: dict[str, Any], terms: dict[Any, list[tuple[Tensor, tuple[str, int] | int]]]
) -> Iterator[ExpectedTerm]:
    """Pyro's ``Dice.compute_expectation``; ``where`` leaves out what has no weight, for a cost may be infinite."""
    dice = Dice(guide_trace, ordering)
    weighing = {
        site["name"]: ordering[site["name"]]
        for site in samples(guide_trace)
        if not is_identically_zero(site["packed"]["score_parts"].score_function)
        or site["infer"].get("num_samples") is not None
    }
    with shared_intermediates() as cache:
        ring = MarginalRing(cache=cache)
        for ordinal, costs in terms.items():
            log_weights = dice._get_log_factors(ordinal)
            scale = math.exp(sum(x for x in log_weights if not isinstance(x, Tensor)))
            log_weights = [x for x in log_weights if isinstance(x, Tensor)]
            sites = tuple(name for name, of_site in weighing.items() if of_site <= ordinal)
            weights = _weights(ring, log_weights, ordinal, [cost for cost, _ in costs]) if log_weights else {}
            for cost, key in costs:
                value: Any = cost
                if weights:
                    weight = weights[frozenset(cost._pyro_dims)]  # type: ignore[attr-defined]
                    value, weight = packed.broadcast_all(cost, weight)
                    value = weight * torch.where(weight > 0, value, torch.zeros_like(value))
                value = value.sum()
                yield ExpectedTerm(value if scale == 1 else value * scale, key, sites)


def _weights(ring: MarginalRing, log_weights: list[Any], ordinal: Any, costs: list[Any]) -> dict[frozenset[str], Any]:
    """The marginal weight of each value of the enumerated dims that some costs have, by these dims."""
    queries: dict[frozenset[str], Any] = {frozenset(cost._pyro_dims): None for cost in costs}
    factors = list(log_weights)
    for log_weight in log_weights:
        key = frozenset(log_weight._pyro_dims)
        if key in queries and queries[key] is None:
            queries[key] = log_weight
    for cost in costs:
        key = frozenset(cost._pyro_dims)
        if queries[key] is None:
            query: Any = torch.zeros_like(cost)
            query._pyro_dims = cost._pyro_dims
            factors.append(query)
            queries[key] = query
    for query in queries.values():
        require_backward(query)
    root = ring.sumproduct(factors, set().union(*(x._pyro_dims for x in factors)) - ordinal)
    root._pyro_backward()
    weights = {}
    for key, query in queries.items():
        weights[key] = query._pyro_backward_result.exp()
        weights[key]._pyro_dims = query._pyro_dims
    return weights
