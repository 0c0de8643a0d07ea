"""Sums enumerated sites of the model alone out of the densities that they are in: into marginal costs.

Densities that share a site are factors of one sum, in log space, plate by plate, as Pyro's ``TraceEnum_ELBO`` contracts
them (``pyro.infer.traceenum_elbo``, ``pyro.ops.contract``; Obermeyer et al. 2019, "Tensor Variable Elimination for
Plated Factor Graphs").
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from opt_einsum import shared_intermediates
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import einsum, packed
from pyro.ops.contract import _partition_terms, contract_tensor_tree
from pyro.ops.einsum import torch_log
from pyro.ops.rings import MarginalRing
from pyro.poutine import Trace
from torch import Tensor

from sgc.errors import EnumerationError
from sgc.graph.sizes import size_of
from sgc.tracing.enumeration.asked_enumeration import SUMMED_OUT_DIM, VALUES_DIM
from sgc.tracing.enumeration.log_einsum import log_einsum
from sgc.tracing.sample_sites import samples
from sgc.tracing.threads import replaced_here


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


def marginal_costs(model_trace: Trace, guide_trace: Trace) -> list[MarginalTerm]:
    """What the enumerated sites of the model alone are summed out into. Each value has its dims where the program has
    them: those of plates, and those of the values of sites that the guide enumerates.

    :param model_trace: with ``log_prob`` and ``unscaled_log_prob`` at its sites; it is packed by this.
    :param guide_trace: with ``score_parts`` too; likewise.
    :raises EnumerationError: if a density has no size that fits, joint sites are in plates that are not nested, or
        sites of the guide that a sum depends on have their values in one dim.
    """
    try:
        guide_trace.pack_tensors()
        model_trace.pack_tensors(guide_trace.plate_to_symbol)
    except ValueError as error:
        raise _not_packed(error) from error
    check_sizes(model_trace, guide_trace)
    tables: list[tuple[int, ...]] = []
    with sums_that_fuse(tables):
        _, factors, _, sum_dims, scale = model_factors(model_trace, guide_trace)
        terms = [term for _, term in marginal_terms(model_trace, guide_trace, factors, sum_dims, scale, tables)]
    return [replace(term, value=_unpacked(term, model_trace, guide_trace)) for term in terms]


def _unpacked(term: MarginalTerm, model_trace: Trace, guide_trace: Trace) -> Tensor:
    symbols: str = term.value._pyro_dims  # type: ignore[attr-defined]
    dims = [model_trace.symbol_to_dim[symbol] for symbol in symbols]
    if len(set(dims)) < len(dims):
        several = [site for site in samples(guide_trace) if VALUES_DIM in site["infer"]]
        own = {site["name"]: site["infer"]["_dim_to_symbol"][site["infer"][VALUES_DIM]] for site in several}
        above = [repr(name) for name, symbol in own.items() if symbol in symbols]
        raise EnumerationError(
            f"the sum over it depends on {', '.join(above)} jointly, and pyro.markov lets the guide have the values of "
            "several of them in one dim",
            site=term.eliminated[0],
            remedy="draw these in the guide; or leave its pyro.markov out, so that each has a dim of its own",
        )
    value: Tensor = packed.unpack(term.value, model_trace.symbol_to_dim)
    return value


def _not_packed(error: ValueError) -> EnumerationError:
    """For a density with a batch dim that is neither a plate's nor one of enumerated values."""
    site = re.search(r"tensors at site '(.*?)'", str(error))
    shape = re.search(r"Actual shape: \((.*?),?\)", str(error))
    return EnumerationError(
        f"its density has shape [{shape[1] if shape else ''}], with a dim that is neither a plate's nor one of "
        "enumerated values",
        site=site[1] if site else None,
        remedy="put it into a plate for each batch dim, call .to_event(n) on its distribution, or index by enumerated "
        "values with pyro.ops.indexing.Vindex; read a site within the scope of its pyro.markov",
    )


def check_sizes(*traces: Trace) -> None:
    """Refuse a density with a batch dim to the left of all plates that are counted, where a site is enumerated."""
    sites = [site for trace in traces for site in samples(trace)]
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


def model_factors(model_trace: Trace, guide_trace: Trace) -> Any:
    """Pyro's ``_compute_model_factors``: costs and factors by plates, plates of sites, dims to sum over, their scale.

    :raises EnumerationError: if what is joint is scaled otherwise than one another.
    """
    try:
        return _compute_model_factors(model_trace, guide_trace)
    except ValueError as error:
        raise _with_site(error, model_trace) from error


def marginal_terms(
    model_trace: Trace,
    guide_trace: Trace,
    factors: OrderedDict[Any, list[Tensor]],
    sum_dims: set[str],
    scale: Any,
    tables: list[tuple[int, ...]],
) -> Iterator[tuple[Any, MarginalTerm]]:
    """Each marginal term, packed and scaled, with its ordinal."""
    for ordinal, value, sites, eliminated in _contracted(model_trace, guide_trace, factors, sum_dims):
        value = packed.scale_and_mask(value, scale=scale)
        plates = tuple(name for name, symbol in model_trace.plate_to_symbol.items() if symbol in value._pyro_dims)
        yield ordinal, MarginalTerm(value, sites, eliminated, plates, tuple(tables))
        tables.clear()


def _with_site(error: ValueError, model_trace: Trace) -> EnumerationError:
    """Pyro's refusal to combine what is enumerated: its text, with the site and what to write for it."""
    text = str(error)
    upstream = re.search(r"upstream of guide site '(.*?)'", text)
    if upstream is not None:
        remedy = "enumerate the sites upstream of it in the guide, too, or this one in the model"
        return EnumerationError(text.partition(". ")[0], site=upstream[1], remedy=remedy)
    joint = [site for site in samples(model_trace) if "masked_log_prob" in site["packed"] or _is_enumerated(site)]
    not_numbers = [site for site in joint if isinstance(site["scale"], Tensor) and site["scale"].ndim]
    others = not_numbers or [site for site in joint if site["scale"] is not joint[0]["scale"] != site["scale"]]
    remedy = "put enumerated sites and those that depend on them under one poutine.scale, a number, and plates that "
    return EnumerationError(text.rstrip("."), site=(others or joint)[0]["name"], remedy=remedy + "subsample alike")


def _is_enumerated(site: Any) -> bool:
    return site["infer"].get(SUMMED_OUT_DIM) is not None


def _contracted(
    model_trace: Trace, guide_trace: Trace, factors: OrderedDict[Any, list[Tensor]], sum_dims: set[str]
) -> Iterator[tuple[Any, Any, tuple[str, ...], tuple[str, ...]]]:
    """Each connected component of the factors, contracted: ordinal, value, the factors' sites, the sites summed out."""
    if not factors:
        return
    names: dict[int, str] = {}
    summed = set()  # also a site of one value, over which nothing is added up
    for site in samples(model_trace):
        for key in ("masked_log_prob", "unscaled_log_prob"):
            if key in site["packed"]:
                names[id(site["packed"][key])] = site["name"]
        if _is_enumerated(site) and site["name"] not in guide_trace:
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


@contextmanager
def sums_that_fuse(tables: list[tuple[int, ...]]) -> Iterator[None]:
    """While it is entered, Pyro's sums are made by operators that fuse.

    :param tables: takes the shape of each table that is summed over.
    """
    with (
        replaced_here(torch_log, "einsum", partial(log_einsum, tables=tables)),
        replaced_here(einsum, "contract_expression", partial(_contract_expression, einsum.contract_expression)),
    ):
        yield


def _contract_expression(pyros: Callable[..., Any], equation: str, *shapes: Iterable[Any], **options: Any) -> Any:
    """Pyro's order of a contraction, found for the sizes of the capture where they differ from call to call."""
    return pyros(equation, *(tuple(int(size_of(size)) for size in shape) for shape in shapes), **options)
