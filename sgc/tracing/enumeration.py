"""Runs model and guide with discrete sites enumerated, and takes the expectation of the costs.

The runs, the contraction and the weights are those of Pyro's ``TraceEnum_ELBO`` (``pyro.infer.traceenum_elbo``,
``pyro.ops.contract``; Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs"; DiCE: Foerster et
al. 2018), taken apart into the terms that are summed, so that the graph can hold each.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import LifoQueue
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import iter_discrete_escape, iter_discrete_extend
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.infer.util import Dice
from pyro.ops import einsum, packed
from pyro.ops.contract import _partition_terms, contract_tensor_tree
from pyro.ops.einsum import torch_log
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import MarginalRing
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from sgc.errors import EnumerationError
from sgc.graph.sizes import size_of
from sgc.tracing.log_einsum import log_einsum
from sgc.tracing.threads import replaced_here

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
    for site in _samples(trace):
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
        for site in _samples(trace):
            whole.add_node(site["name"], **site)
    return whole


@dataclass(frozen=True)
class MarginalTerm:
    """The log of a sum, over the values of enumerated sites of the model, of a product of densities.

    :param factors: the sites whose densities these are.
    :param eliminated: the sites that are summed out.
    :param plates: the names of those plates that it has an element for each of.
    :param tables: the shapes of what was summed over, one after another.
    """

    value: Tensor
    factors: tuple[str, ...]
    eliminated: tuple[str, ...]
    plates: tuple[str, ...]
    tables: tuple[tuple[int, ...], ...]


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
    _check_sizes(model_trace, guide_trace)
    tables: list[tuple[int, ...]] = []
    with (
        replaced_here(torch_log, "einsum", partial(log_einsum, tables=tables)),
        replaced_here(einsum, "contract_expression", partial(_contract_expression, einsum.contract_expression)),
    ):
        return _terms(model_trace, guide_trace, tables)


def _contract_expression(pyros: Callable[..., Any], equation: str, *shapes: Iterable[Any], **options: Any) -> Any:
    """Pyro's order of a contraction, found for the sizes of the capture where they differ from call to call."""
    return pyros(equation, *(tuple(int(size_of(size)) for size in shape) for shape in shapes), **options)


def _check_sizes(*traces: Trace) -> None:
    """Refuse a density with a batch dim to the left of all plates that are counted, where a site is enumerated."""
    sites = [site for trace in traces for site in _samples(trace)]
    enumerated: dict[str, tuple[str, int]] = {}
    for site in sites:
        symbol = site["infer"].get("_enumerate_symbol")
        if symbol in _sizes(site):
            enumerated.setdefault(symbol, (site["name"], _sizes(site)[symbol]))
    for site in sites:
        for symbol, size in _sizes(site).items():
            other, values = enumerated.get(symbol, ("", size))
            if size != values:
                raise EnumerationError(
                    f"its density has a dim of size {size_of(size)} where the {values} values of '{other}' are "
                    "enumerated, to the left of the plates that max_plate_nesting counts",
                    site=site["name"],
                    remedy="put it into a plate for each batch dim, or call .to_event(n) on its distribution, and give "
                    "the max_plate_nesting that counts all plates, or none",
                )


def _sizes(site: Any) -> dict[str, int]:
    log_prob = site["packed"]["log_prob"]
    return dict(zip(log_prob._pyro_dims, log_prob.shape, strict=True))


def _terms(
    model_trace: Trace, guide_trace: Trace, tables: list[tuple[int, ...]]
) -> tuple[list[MarginalTerm], list[ExpectedTerm]]:
    try:
        costs, factors, ordering, sum_dims, scale = _compute_model_factors(model_trace, guide_trace)
    except ValueError as error:
        raise _with_site(error, model_trace) from error
    own = {id(site["packed"]["log_prob"]): (site["name"], +1) for site in _samples(model_trace)}
    terms: dict[Any, list[tuple[Tensor, tuple[str, int] | int]]] = {
        ordinal: [(cost, own[id(cost)]) for cost in of_ordinal] for ordinal, of_ordinal in costs.items()
    }
    marginals: list[MarginalTerm] = []
    for ordinal, value, sites, eliminated in _contracted(model_trace, guide_trace, factors, sum_dims):
        value = packed.scale_and_mask(value, scale=scale)
        plates = tuple(name for name, symbol in model_trace.plate_to_symbol.items() if symbol in value._pyro_dims)
        terms.setdefault(ordinal, []).append((value, len(marginals)))
        marginals.append(MarginalTerm(value, sites, eliminated, plates, tuple(tables)))
        tables.clear()
    for site in _samples(guide_trace):
        cost = packed.neg(site["packed"]["log_prob"])
        terms.setdefault(ordering[site["name"]], []).append((cost, (site["name"], -1)))
    return marginals, list(_expected(guide_trace, ordering, terms))


def _with_site(error: ValueError, model_trace: Trace) -> EnumerationError:
    """Pyro's refusal to combine what is enumerated: its text, with the site and what to write for it."""
    text = str(error)
    upstream = re.search(r"upstream of guide site '(.*?)'", text)
    if upstream is not None:
        remedy = "enumerate the sites upstream of it in the guide, too, or this one in the model"
        return EnumerationError(text.partition(". ")[0], site=upstream[1], remedy=remedy)
    joint = [site for site in _samples(model_trace) if "masked_log_prob" in site["packed"] or _is_enumerated(site)]
    not_numbers = [site for site in joint if isinstance(site["scale"], Tensor) and site["scale"].ndim]
    others = not_numbers or [site for site in joint if site["scale"] is not joint[0]["scale"] != site["scale"]]
    remedy = "put enumerated sites and those that depend on them under one poutine.scale, a number, and plates that "
    return EnumerationError(text.rstrip("."), site=(others or joint)[0]["name"], remedy=remedy + "subsample alike")


def _is_enumerated(site: Any) -> bool:
    return site["infer"].get("_enumerate_dim") is not None


def _contracted(
    model_trace: Trace, guide_trace: Trace, factors: OrderedDict[Any, list[Tensor]], sum_dims: set[str]
) -> Iterator[tuple[Any, Any, tuple[str, ...], tuple[str, ...]]]:
    """Each connected component of the factors, contracted: ordinal, value, the factors' sites, the sites summed out."""
    if not factors:
        return
    names: dict[int, str] = {}
    summed = set()  # also a site of one value, over which nothing is added up
    for site in _samples(model_trace):
        for key in ("masked_log_prob", "unscaled_log_prob"):
            if key in site["packed"]:
                names[id(site["packed"][key])] = site["name"]
        if site["infer"].get("_enumerate_dim") is not None and site["name"] not in guide_trace:
            summed.add(site["name"])
    ordinals = {term: ordinal for ordinal, terms in factors.items() for term in terms}
    with shared_intermediates() as cache:
        shapes: list[Any] = list(ordinals)
        sizes = {dim: size for term in shapes for dim, size in zip(term._pyro_dims, term.shape, strict=True)}
        ring = MarginalRing(cache=cache, dim_to_size=sizes)
        for component, dims in _partition_terms(ring, list(ordinals), sum_dims):
            tree: OrderedDict[Any, list[Tensor]] = OrderedDict()
            for term in ordinals:
                if any(term is one for one in component):
                    tree.setdefault(ordinals[term], []).append(term)
            sites = tuple(names[id(term)] for terms in tree.values() for term in terms)
            eliminated = tuple(site for site in model_trace.nodes if site in summed and site in sites)
            try:
                contracted = contract_tensor_tree(tree, dims, ring=ring)
            except NotImplementedError as error:
                raise _not_nested(model_trace, tree, sites, eliminated) from error
            for ordinal, values in contracted.items():
                for value in values:
                    yield ordinal, value, sites, eliminated


def _not_nested(
    model_trace: Trace, tree: Iterable[frozenset[str]], sites: tuple[str, ...], eliminated: tuple[str, ...]
) -> EnumerationError:
    """For densities in plates that are not nested (Obermeyer et al. 2019, section 3: their cost is exponential)."""
    symbols = frozenset().union(*tree)
    plates = [repr(name) for name, symbol in model_trace.plate_to_symbol.items() if symbol in symbols]
    deepest = max(sites, key=lambda name: len(model_trace.nodes[name]["cond_indep_stack"]))
    return EnumerationError(
        f"the enumerated sites {', '.join(map(repr, eliminated))} are in plates that are not nested in one another "
        f"({', '.join(plates)}), and are joint here. Expected tree-structured plate nesting, as Pyro says",
        site=deepest,
        remedy="make one of the plates sequential (for i in pyro.plate(...)), or sample one of the sites in the guide",
    )


def _expected(
    guide_trace: Trace, ordering: dict[str, Any], terms: dict[Any, list[tuple[Tensor, tuple[str, int] | int]]]
) -> Iterator[ExpectedTerm]:
    """Pyro's ``Dice.compute_expectation``; ``where`` leaves out what has no weight, for a cost may be infinite."""
    dice = Dice(guide_trace, ordering)
    weighing = {
        site["name"]: ordering[site["name"]]
        for site in _samples(guide_trace)
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


def _samples(trace: Trace) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]
