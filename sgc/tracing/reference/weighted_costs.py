"""Eagerly: ELBO and surrogate of a run in which some sites have all their values.

The formulas are those of ``docs/estimators.md``, written out as they stand there: each cost is multiplied by the
probabilities of all enumerated sites that it depends on, and summed, in an order that ``opt_einsum`` finds. The
compiled program eliminates one site after another instead, so that one is a test of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import opt_einsum
import torch
from pyro.distributions.util import is_identically_zero
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor

from sgc.tracing.enumeration.asked_enumeration import SUMMED_OUT_DIM, VALUES_DIM
from sgc.tracing.reference.average_rows import construct_baseline
from sgc.tracing.reference.eager_marginals import EagerMarginal, eager_marginals
from sgc.tracing.sample_sites import samples

Labels = tuple[Any, ...]
"""What each dim of a tensor is of: a plate's dim, as a number, or the name of an enumerated site."""


@dataclass(frozen=True)
class Labelled:
    """A tensor without dims of size one, with a label for each dim."""

    value: Tensor
    labels: Labels


@dataclass(frozen=True)
class _Cost:
    """A cost with its sign; what the surrogate has of it; the latent sites that it depends on; its plates by name."""

    value: Labelled
    differentiated: Labelled
    upstream: frozenset[str]
    plates: frozenset[str]


@dataclass(frozen=True)
class Score:
    """A score function times the detached probabilities of the values that it is of, and the downstream cost.

    ``samples_dim`` is the dim of the site's own samples, where it has several.
    """

    site: str
    score: Tensor
    cost: Tensor
    samples_dim: int | None

    def of_others(self) -> Tensor:
        """The mean of the costs of the site's other samples."""
        assert self.samples_dim is not None
        count = self.cost.shape[self.samples_dim]
        return (self.cost.sum(self.samples_dim, keepdim=True) - self.cost) / (count - 1)


def is_enumerated(site: Any) -> bool:
    """Whether a site of a guide has all its values."""
    return site["type"] == "sample" and VALUES_DIM in site["infer"]


class WeightedRun:
    """One run of model and guide.

    :param first_dim: the rightmost dim, negative, that a site may have its values in.
    :param left_out: the sites that ask for a leave-one-out baseline.
    """

    def __init__(
        self, model_trace: Trace, guide_trace: Trace, first_dim: int, left_out: frozenset[str] = frozenset()
    ) -> None:
        self._first_dim, self._left_out = first_dim, left_out
        self._guide = {site["name"]: site for site in samples(guide_trace)}
        enumerated = {name: site for name, site in self._guide.items() if is_enumerated(site)}
        self._dims: dict[Any, int] = {name: site["infer"][VALUES_DIM] for name, site in enumerated.items()}
        self._names = {site["infer"]["_dim_to_id"][self._dims[name]]: name for name, site in enumerated.items()}
        for site in samples(model_trace):
            if SUMMED_OUT_DIM in site["infer"]:
                self._names[site["infer"]["_dim_to_id"][site["infer"][SUMMED_OUT_DIM]]] = site["name"]
        self._upstream: dict[str, frozenset[str]] = {}
        for name, site in self._guide.items():
            self._upstream[name] = self._depends_on(site)
        self._sampled = {name for name, site in enumerated.items() if site["infer"].get("num_samples") is not None}
        weights = {name: self._weight(name, site) for name, site in enumerated.items()}
        self._weights = {name: weight for name, weight in weights.items() if name in weight.labels}  # else it is one
        marginals = eager_marginals(model_trace, guide_trace)
        self._costs = [*self._of_model(model_trace, marginals), *self._of_guide()]

    def value_and_surrogate(self) -> tuple[Tensor, Tensor]:
        """The ELBO of the run, and its surrogate loss without what leave-one-out baselines add."""
        value = sum(self._expected(cost.value, cost.upstream, ()).value for cost in self._costs)
        surrogate: Any = sum(self._expected(cost.differentiated, cost.upstream, ()).value for cost in self._costs)
        errors: Any = 0.0
        for site in self.scores():
            if site.site in self._left_out and site.samples_dim is not None:
                used, error, baseline = True, 0.0, site.of_others()
            else:
                used, error, baseline = construct_baseline(site.site, self._guide[site.site], site.cost)
            centred = site.cost - baseline if used else site.cost
            errors = errors + error
            surrogate = surrogate + (site.score * centred.detach()).sum()
        return torch.as_tensor(value).detach(), errors - surrogate

    def scores(self) -> Iterator[Score]:
        """Of each site with a score function that a cost depends on."""
        for name, site in self._guide.items():
            score_function = detach_provenance(site["score_parts"].score_function)
            below = [cost for cost in self._costs if name in cost.upstream]
            is_summed = name in self._dims and name not in self._sampled
            if not below or site["is_observed"] or is_summed or is_identically_zero(score_function):
                continue
            upstream = self._upstream[name] | ({name} & self._sampled)
            dims = {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
            plates = list(dims.values())
            costs = [
                self._expected(cost.value, cost.upstream - upstream, [dims[p] for p in dims if p in cost.plates])
                for cost in below
            ]
            downstream: Any = sum(self._in_place(cost) for cost in costs)
            own = self._labelled(site, score_function)
            labels = dict.fromkeys((*own.labels, *(label for cost in costs for label in cost.labels)))
            of_values = {label for label in labels if label in self._dims}
            weights = [self._weights[e] for e in self._closed(of_values) if e in self._weights]
            weight = _product([Labelled(w.value.detach(), w.labels) for w in weights], [*of_values, *plates])
            dim = self._dims[name] if name in self._sampled else None
            yield Score(name, self._in_place(weight) * score_function, downstream.detach(), dim)

    def _weight(self, name: str, site: Any) -> Labelled:
        """The probabilities of an enumerated site's values; of one with several samples, one over their number."""
        if name not in self._sampled:
            return self._labelled(site, detach_provenance(site["unscaled_log_prob"]).exp())
        log_prob = detach_provenance(site["unscaled_log_prob"])
        count = log_prob.shape[self._dims[name]]
        return Labelled(torch.full((count,), 1 / count, dtype=log_prob.dtype, device=log_prob.device), (name,))

    def _of_model(self, model_trace: Trace, marginals: list[EagerMarginal]) -> Iterator[_Cost]:
        factors = {name for marginal in marginals for name in marginal.factors}
        for site in samples(model_trace):
            if site["name"] not in factors:
                own = self._labelled(site, detach_provenance(site["log_prob"]))
                yield _Cost(own, own, self._depends_on(site), _plates(site))
        nodes: Any = model_trace.nodes
        for marginal in marginals:
            own = Labelled(marginal.value, marginal.labels)
            upstream = frozenset().union(*(self._depends_on(nodes[name]) for name in marginal.factors))
            yield _Cost(own, own, upstream, marginal.plates)

    def _of_guide(self) -> Iterator[_Cost]:
        for name, site in self._guide.items():
            own = self._labelled(site, -detach_provenance(site["log_prob"]))
            entropy = detach_provenance(site["score_parts"].entropy_term)
            detached = Labelled(own.value.detach(), own.labels)
            known = detached if is_identically_zero(entropy) else self._labelled(site, -entropy)
            yield _Cost(own, known, self._upstream[name], _plates(site))

    def _depends_on(self, site: Any) -> frozenset[str]:
        """The latent sites that a density depends on: dims tell of enumerated ones also where Pyro loses provenance."""
        density = site["log_prob"]
        of_values = [label for label in self._labelled(site, detach_provenance(density)).labels if label in self._dims]
        own = [site["name"]] if site["name"] in self._dims else []
        return self._closed([*get_provenance(density), *of_values, *own])

    def _closed(self, names: Any) -> frozenset[str]:
        """These, and what the distributions of the enumerated sites among them depend on."""
        closed: set[str] = set(names)
        several = [name for name in closed if name in self._dims and name in self._upstream]
        return frozenset(closed.union(*(self._upstream[name] for name in several)))

    def _labelled(self, site: Any, value: Tensor) -> Labelled:
        ids = site["infer"].get("_dim_to_id", {})
        labels = [
            self._names[ids[dim]] if dim <= self._first_dim else dim
            for dim in range(-value.dim(), 0)
            if value.shape[dim] != 1
        ]
        return Labelled(value.squeeze(), tuple(labels))

    def _expected(self, cost: Labelled, upstream: frozenset[str], kept: Any) -> Labelled:
        """A cost, summed over the values of the enumerated sites among ``upstream`` with their probabilities, and over
        plates that are not kept.
        """
        weights = [self._weights[name] for name in upstream if name in self._weights]
        stay = [
            label
            for label in dict.fromkeys((*cost.labels, *(x for w in weights for x in w.labels)))
            if label in kept or (label in self._dims and label not in upstream)
        ]
        finite = Labelled(cost.value.clamp(min=torch.finfo(cost.value.dtype).min), cost.labels)  # its weight may be 0
        return _product([finite, *weights], stay)

    def _in_place(self, given: Labelled) -> Tensor:
        """The tensor with each dim where it belongs."""
        dims: list[int] = [dict.get(self._dims, label, label) for label in given.labels]
        order = sorted(range(len(dims)), key=dims.__getitem__)
        shape = [1] * -min(dims, default=0)
        for place in order:
            shape[dims[place]] = given.value.shape[place]
        return given.value.permute(order).reshape(shape)


def _product(factors: list[Labelled], kept: Any) -> Labelled:
    """The product of some tensors, summed over all labels but these."""
    if not factors:
        return Labelled(torch.ones(()), ())
    known = {label for factor in factors for label in factor.labels}
    labels = tuple(label for label in dict.fromkeys(kept) if label in known)
    number = {label: position for position, label in enumerate([*labels, *(known - set(labels))])}
    operands = [part for f in factors for part in (f.value, [number[label] for label in f.labels])]
    return Labelled(opt_einsum.contract(*operands, [number[label] for label in labels], backend="torch"), labels)


def _plates(site: Any) -> frozenset[str]:
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)
