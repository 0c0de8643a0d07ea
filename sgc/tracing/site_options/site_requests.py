"""Collects what the statements of latent sites ask for, from the run that precedes a capture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from sgc.config import AUTO
from sgc.errors import SourceLine
from sgc.graph.estimator_rules import Sampler
from sgc.graph.plan import SiteRequest
from sgc.tracing.enumeration.asked_enumeration import samples_asked
from sgc.tracing.site_options.asked_estimators import as_given, base_distribution
from sgc.tracing.source import current_line


class SiteRequests(Messenger):
    """Notes the line of each sample statement; the guide's, where the model has it too, for the guide runs first."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, SourceLine | None] = {}
        self._drawn: set[str] = set()
        self.requests: tuple[SiteRequest, ...] = ()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self._lines:
            self._lines[msg["name"]] = current_line()
        if isinstance(msg["fn"], _Subsample):  # Pyro's classes take these out of a trace
            self._drawn.add(msg["name"])

    def note(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Note what the latent sites of a guide ask for, and those of the model alone that ask for an estimator."""
        self.requests = (*self._of(guide_trace), *self._of_model(model_trace, guide_trace))

    def _of_model(self, model_trace: Trace, guide_trace: Trace) -> Iterator[SiteRequest]:
        for name, site in _latent(model_trace):
            asked = site["infer"].get("estimator")
            if name not in guide_trace.nodes and asked is not None:
                sampler = sampler_of(as_given(site["fn"]))
                loop = self._random_loop(site)
                yield SiteRequest(name, self._lines.get(name), sampler, asked, in_model=True, in_random_loop=loop)

    def _of(self, guide_trace: Trace) -> Iterator[SiteRequest]:
        for name, site in _latent(guide_trace):
            infer: dict[str, Any] = dict(site["infer"] or {})
            baseline = infer.get("baseline")
            options = baseline.items() if isinstance(baseline, Mapping) else ()
            given = frozenset(str(option) for option, value in options if value is not None and value is not False)
            yield SiteRequest(
                name=name,
                source=self._lines.get(name),
                sampler=sampler_of(as_given(site["fn"])),
                estimator=infer.get("estimator"),
                baseline=given,
                samples=samples_asked(infer),
                table=_table(site["fn"]) if infer.get("estimator") == AUTO else None,
                in_random_loop=self._random_loop(site),
            )

    def _random_loop(self, site: Any) -> str | None:
        """The sequential plate around a site that has drawn its subsample."""
        loops = (frame for frame in site["cond_indep_stack"] if not frame.vectorized and frame.size != frame.full_size)
        return next((loop.name for loop in loops if loop.name in self._drawn), None)


def _latent(trace: Trace) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], _Subsample):
            yield name, site


def _table(fn: Any) -> int | None:
    if not getattr(fn, "has_enumerate_support", False):
        return None
    try:
        values = fn.enumerate_support(expand=False).shape[0]
    except NotImplementedError:  # of a batch with supports of several sizes
        return None
    return int(values * math.prod(fn.batch_shape))


def sampler_of(fn: Any) -> Sampler:
    """What a distribution has, as it is given in a statement."""
    has_rsample = bool(getattr(fn, "has_rsample", False))
    given, fn = fn, base_distribution(fn)
    has_acceptance = getattr(type(fn), "score_parts", None) is not TorchDistributionMixin.score_parts
    enumerable = bool(getattr(given, "has_enumerate_support", False))
    return Sampler(type(fn).__name__, has_rsample, has_acceptance or not has_rsample, enumerable=enumerable)
