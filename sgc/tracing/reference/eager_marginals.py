"""Eagerly: what enumerated sites of the model alone are summed out into, by Pyro's own contraction.

Scale, mask and sums are those of ``pyro.infer.traceenum_elbo``, on the densities of one eager run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opt_einsum import shared_intermediates
from pyro.distributions.score_parts import ScoreParts
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.provenance import detach_provenance
from pyro.ops.rings import SampleRing
from pyro.poutine import Trace
from torch import Tensor

from sgc.tracing.enumeration.asked_enumeration import SUMMED_OUT_DIM, VALUES_DIM
from sgc.tracing.sample_sites import samples


@dataclass(frozen=True)
class EagerMarginal:
    """A marginal cost, the sites whose densities are its factors, and the names of its plates.

    ``labels`` says of each of its dims what it is of: a plate's dim, as a number, or a site that the guide enumerates.
    """

    value: Tensor
    labels: tuple[Any, ...]
    factors: tuple[str, ...]
    plates: frozenset[str]


def eager_marginals(model_trace: Trace, guide_trace: Trace) -> list[EagerMarginal]:
    """The marginal costs of a run.

    :raises ValueError: as Pyro's ``TraceEnum_ELBO``, if sites that are joint are scaled otherwise than one another.
    :raises NotImplementedError: likewise, if they are in plates that are not nested.
    """
    if not any(SUMMED_OUT_DIM in site["infer"] for site in samples(model_trace)):
        return []
    model_trace, guide_trace = _plain(model_trace), _plain(guide_trace)
    guide_trace.pack_tensors()
    model_trace.pack_tensors(guide_trace.plate_to_symbol)
    _, factors, _, dims, scale = _compute_model_factors(model_trace, guide_trace)
    marginals = []
    for value, labels, sites in _of_components(model_trace, guide_trace, factors, dims):
        plates = frozenset(name for name, symbol in model_trace.plate_to_symbol.items() if symbol in _dims(value))
        marginals.append(EagerMarginal(packed.scale_and_mask(value, scale=scale), labels, sites, plates))
    return marginals


def _of_components(
    model_trace: Trace, guide_trace: Trace, factors: OrderedDict[Any, list[Tensor]], dims: set[str]
) -> Iterator[tuple[Tensor, tuple[Any, ...], tuple[str, ...]]]:
    names = {
        id(site["packed"][key]): site["name"]
        for site in samples(model_trace)
        for key in ("masked_log_prob", "unscaled_log_prob")
        if key in site["packed"]
    }
    label: dict[str, Any] = dict(model_trace.symbol_to_dim)
    for site in samples(guide_trace):
        if VALUES_DIM in site["infer"]:
            label[site["infer"]["_dim_to_symbol"][site["infer"][VALUES_DIM]]] = site["name"]
    for component in _components(factors, dims):
        terms = [term for of_plates in component.values() for term in of_plates]
        sizes = {d: size for term in terms for d, size in zip(_dims(term), term.shape, strict=True)}
        with shared_intermediates() as cache:
            ring = SampleRing(cache=cache, dim_to_size=sizes)
            ((value,),) = contract_tensor_tree(component, dims & sizes.keys(), ring=ring).values()
        yield value, tuple(label[d] for d in _dims(value)), tuple(names[id(term)] for term in terms)


def _components(factors: OrderedDict[Any, list[Tensor]], dims: set[str]) -> list[OrderedDict[Any, list[Tensor]]]:
    """The factors, grouped so that those which share a dim that is summed over are together."""
    groups: list[tuple[set[str], list[tuple[Any, Tensor]]]] = []
    for ordinal, terms in factors.items():
        for term in terms:
            own, members = dims & set(_dims(term)), [(ordinal, term)]
            for group in [group for group in groups if group[0] & own]:
                groups.remove(group)
                own, members = own | group[0], [*group[1], *members]
            groups.append((own, members))
    components = []
    for _, members in groups:
        component: OrderedDict[Any, list[Tensor]] = OrderedDict()
        for ordinal, term in members:
            component.setdefault(ordinal, []).append(term)
        components.append(component)
    return components


def _dims(term: Tensor) -> str:
    dims: str = term._pyro_dims  # type: ignore[attr-defined]
    return dims


def _plain(trace: Trace) -> Trace:
    """The trace with densities that know nothing of the samples above them, for Pyro's sums know no others."""
    plain = Trace()
    for site in samples(trace):
        parts = {key: detach_provenance(site[key]) for key in _PARTS if key in site}
        if "score_parts" in site:
            parts["score_parts"] = ScoreParts(*map(detach_provenance, site["score_parts"]))
        plain.add_node(site["name"], **{**site, **parts, "infer": dict(site["infer"])})
    return plain


_PARTS = ("log_prob", "unscaled_log_prob", "scale", "mask")
