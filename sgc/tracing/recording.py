"""Runs Pyro's traces while fx records, and collects what the captured program must output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from sgc.errors import CaptureError, EnumerationError
from sgc.graph.plan import WITH_BASELINES, Plan
from sgc.graph.program import Baseline, PlateRows
from sgc.graph.sizes import shape_of, size_of
from sgc.tracing import tracer
from sgc.tracing.analytic_divergence import analytic_divergence, differentiated_family, weighted_alike
from sgc.tracing.enumeration.asked_enumeration import SUMMED_OUT_DIM, VALUES_DIM, enumerated_as_asked, probability
from sgc.tracing.enumeration.enumerated_runs import (
    ExpectedTerm,
    enumerating,
    expectation,
    joined,
    name_in_run,
    named_apart,
)
from sgc.tracing.enumeration.summed_out import MarginalTerm, marginal_costs
from sgc.tracing.sample_sites import samples
from sgc.tracing.site_options.baseline_options import (
    MakeError,
    ModelBaselines,
    errors_of,
    read_options,
    value_of_network,
)
from sgc.tracing.site_options.plate_subsamples import are_rows, is_permuted, is_whole, plates_with_rows, rows_of
from sgc.tracing.site_recorder import SiteParts, SiteRecorder, Statement, score_parts
from sgc.tracing.state.transcript import Transcript
from sgc.tracing.values.reads import ReadGuard
from sgc.tracing.values.validation import Requirement


class Recording:
    """The traces, and for each ``(site, role)`` the position of its tensor among the outputs.

    :param plan: what was decided for the sites.
    :param failed_before: whether the prototype failed, when Pyro combined costs and baselines.
    """

    def __init__(self, plan: Plan, *, failed_before: bool = False) -> None:
        self._failed_before = failed_before
        self._with_baselines = plan.objective in WITH_BASELINES
        self._plan = plan
        self.recorder = SiteRecorder(plan)
        self.reads: list[ReadGuard] = []
        self.requirements: list[Requirement] = []
        self.outputs: list[Tensor] = []
        self.model_trace: Trace
        self.guide_trace: Trace
        self._runs: list[tuple[tuple[Trace, Trace], dict[str, Statement]]] = []
        self.slots: dict[tuple[str, str], int] = {}
        self.baselines: dict[str, Baseline] = {}
        self.masks: dict[str, list[int]] = {}
        self.enumerates = False
        self.values_in: dict[int, dict[int, str]] = {}
        """For each site of a trace, by its identity: which enumerated site has its values in which dim."""
        self.marginals: list[MarginalTerm] = []
        self.expected: list[ExpectedTerm] = []
        self.model_baselines = ModelBaselines()
        self.weighted_alike: dict[str, bool | None] = {}
        """For each site whose two densities have a closed form, whether they are scaled and masked alike."""
        self.transcript = Transcript()

    def run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        first_dim: int | None,
    ) -> None:
        """Trace guide and model, then evaluate every density and baseline, in Pyro's order.

        :param first_dim: the rightmost dim, negative, that a site may have its values in; None: no site asks for that.
        """
        model = self.model_baselines(model)
        if first_dim is not None:
            self.enumerates = True
            model, guide = enumerated_as_asked(model, guide, first_dim)
        with self.recorder:
            self.model_trace, self.guide_trace = traces(model, guide, args, kwargs)
        if first_dim is not None:
            self._values_in(first_dim)
        self._runs = [((self.model_trace, self.guide_trace), self.recorder.statements)]
        self._densities(self.model_trace, self.guide_trace)
        if any(SUMMED_OUT_DIM in site["infer"] for site in samples(self.model_trace)):
            with self._located():
                marginals = marginal_costs(self.model_trace, self.guide_trace)
            for marginal in marginals:
                self._marginal(marginal)
        for site in samples(self.model_trace) if self._plan.asks_for_closed_forms else ():
            self._closed_form(site)
        for site in samples(self.guide_trace) if self._with_baselines else ():
            if "baseline" in site["infer"] and not site["is_observed"]:
                self._baseline(site)

    def _values_in(self, first_dim: int) -> None:
        """Note whose values the dims to the left of the plates are."""
        names = {
            site["infer"]["_dim_to_id"][site["infer"][key]]: site["name"]
            for trace, key in ((self.guide_trace, VALUES_DIM), (self.model_trace, SUMMED_OUT_DIM))
            for site in samples(trace)
            if key in site["infer"]
        }
        for trace in (self.model_trace, self.guide_trace):
            for site in samples(trace):
                ids = site["infer"].get("_dim_to_id", {})
                self.values_in[id(site)] = {dim: names[i] for dim, i in ids.items() if dim <= first_dim and i in names}

    def run_enumerated(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        first_dim: int,
    ) -> None:
        """Trace guide and model once for each joint value of the sequentially enumerated sites, and evaluate every
        density, marginal and expected cost, in Pyro's order.

        :param first_dim: the rightmost dim, negative, that a site may be enumerated in.
        """
        self.enumerates = True
        model, guides = enumerating(self.model_baselines(model), guide, first_dim)
        runs = self._runs = []
        for one in guides():
            self.recorder.statements = {}
            with self.recorder:
                runs.append((traces(model, one, args, kwargs), self.recorder.statements))
        pairs = named_apart([pair for pair, _ in runs])
        self.recorder.statements = {}
        for number, (_, statements) in enumerate(runs):
            self.recorder.statements |= {name_in_run(name, number, len(runs)): s for name, s in statements.items()}
        self.model_trace, self.guide_trace = (joined(of_runs) for of_runs in zip(*pairs, strict=True))
        for model_trace, guide_trace in pairs:
            self._densities(model_trace, guide_trace)
            guide_trace.pack_tensors()
            model_trace.pack_tensors(guide_trace.plate_to_symbol)
            self._expectation(model_trace, guide_trace)

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Add to an error the line of the site that it names."""
        try:
            yield
        except EnumerationError as error:
            known = self.recorder.statements.get(str(error.site))
            source = known.source if known is not None else None
            raise EnumerationError(
                error.problem, site=error.site, source=source, remedy=error.remedy
            ) from error.__cause__

    def _marginal(self, marginal: MarginalTerm) -> None:
        self._output(f"{len(self.marginals)}", "marginal", marginal.value)
        self.marginals.append(marginal)

    def _expectation(self, model_trace: Trace, guide_trace: Trace) -> None:
        with self._located():
            marginals, expected = expectation(model_trace, guide_trace)
        of_earlier_runs = len(self.marginals)
        for marginal in marginals:
            self._marginal(marginal)
        for term in expected:
            cost = term.cost + of_earlier_runs if isinstance(term.cost, int) else term.cost
            self._output(f"{len(self.expected)}", "expected", term.value)
            self.expected.append(replace(term, cost=cost))

    def _densities(self, model_trace: Trace, guide_trace: Trace) -> None:
        for site in samples(model_trace):
            own = self._score_parts(site, in_guide=False)
            site["log_prob"], site["unscaled_log_prob"] = own.parts.log_prob, own.unscaled
            self._output(site["name"], "model.log_prob", own.parts.log_prob)
        for site in samples(guide_trace):
            name, own = site["name"], self._score_parts(site, in_guide=True)
            site["score_parts"], site["unscaled_log_prob"] = own.parts, own.unscaled
            self._output(name, "guide.log_prob", own.parts.log_prob)
            if not is_identically_zero(own.parts.entropy_term):
                self._output(name, "guide.entropy_term", own.parts.entropy_term)
            if not is_identically_zero(own.parts.score_function):
                self._score_function(name, own)
            if VALUES_DIM in site["infer"]:  # by the trace: names that depend on samples are others at each run
                self._output(name, "guide.probability", probability(site, own.unscaled))

    def _closed_form(self, site: Any) -> None:
        name = site["name"]
        guide_site = self.guide_trace.nodes.get(name)
        if guide_site is None or site["is_observed"]:
            return
        if not self._plan.analytic_kl and (name, "guide.entropy_term") not in self.slots:
            return  # Pyro refuses it, and so do the passes
        family = differentiated_family(guide_site["fn"], site["fn"])
        if family is not None and self._plan.analytic_kl:
            return
        if family is not None:
            raise CaptureError(
                f"torch computes KL(q || p) of two distributions {family} by automatic differentiation, which detaches "
                "the parameters of q: Pyro's gradient in them is wrong",
                site=name,
                source=self.recorder.statements[name].source,
                remedy="take TraceGraph_ELBO or Trace_ELBO, which do without closed forms",
            )
        divergence = analytic_divergence(guide_site, site)
        if divergence is not None:
            self._output(name, "divergence", divergence)
            self.weighted_alike[name] = weighted_alike(guide_site, site)

    def _score_function(self, name: str, own: SiteParts) -> None:
        """The factor of the downstream costs; where a mask hides entries of the sample, two to choose from."""
        if not own.masks or own.whole_score is None:
            self._output(name, "guide.score_function", own.parts.score_function)
            return
        self._output(name, "guide.score_function", own.whole_score)
        self._output(name, "guide.masked_score_function", own.parts.score_function)
        self.masks[name] = [hiding.event_dims for hiding in own.masks]
        for position, hiding in enumerate(own.masks):
            if hiding.mask is not None:
                self._output(name, f"guide.mask{position}", hiding.mask)

    def note_sites(self, *, named_by_samples: bool) -> None:
        """Note the sample statements of every run in the transcript."""
        for run, (traces, statements) in enumerate(self._runs):
            sources = {name: statement.source for name, statement in statements.items()}
            self.transcript.note_sites(traces, sources, run=run, named_by_samples=named_by_samples)

    def _score_parts(self, site: Any, *, in_guide: bool) -> SiteParts:
        known, line = len(self.requirements), self.recorder.statements[site["name"]].source
        with self.recorder.attempting():
            own = score_parts(site, in_guide=in_guide, line=line)
        for requirement in self.requirements[known:]:
            requirement.site, requirement.source = site["name"], line
        return own

    def _output(self, name: str, role: str, value: Any) -> None:
        self.slots[name, role] = len(self.outputs)
        self.outputs.append(value if isinstance(value, Tensor) else torch.as_tensor(value))

    def _baseline(self, site: Any) -> None:
        """Evaluate the user's baseline where Pyro does; the baseline pass decides what is done with it."""
        name = site["name"]
        error = errors_of(name, self.recorder.statements[name].source)
        options = read_options(site["infer"]["baseline"], error)
        value = options.value
        if options.network is not None and self._is_scored_by_pyro(name):
            value = value_of_network(options, self._failed_before, error)
        if value is not None:
            self._output(name, "baseline", value)
        self.baselines[name] = Baseline(
            kind=options.kind,
            value=None,
            value_shape=None if value is None else shape_of(value.shape) if isinstance(value, Tensor) else (),
            decaying_average=options.decaying,
            beta=options.beta,
            idle_beta="baseline_beta" in options.given and not options.decaying,
            leave_one_out=options.leave_one_out,
            per_datum=options.per_datum,
            rows=tuple(self._rows(site, error)) if options.per_datum else (),
        )

    def _rows(self, site: Any, error: MakeError) -> Iterator[PlateRows]:
        """The rows that the plates around a site have, where these are not all."""
        name, statement = site["name"], self.recorder.statements[site["name"]]
        for subsample in plates_with_rows(site, statement.subsamples, statement.source):
            if is_whole(subsample):
                continue
            rows = rows_of(subsample, site["value"].device, error)
            distinct = is_permuted(subsample)
            if not distinct:
                what = f"the subsample of plate '{subsample.plate}' has rows from 0 to {subsample.full_size - 1}"
                holds = tracer.node_of(are_rows(rows, subsample))
                self.requirements.append(Requirement(holds, what, statement.source, name))
                rows = rows.clamp(0, subsample.full_size - 1)
            self._output(name, index_role(subsample.plate), rows)
            yield PlateRows(subsample.plate, subsample.dim, int(size_of(subsample.full_size)), "", distinct)

    def _is_scored_by_pyro(self, name: str) -> bool:
        """Whether Pyro asks for a baseline: if the sample is not reparameterised in the guide, or in the model."""
        in_model = self.model_trace.nodes.get(name)
        return (name, "guide.score_function") in self.slots or (
            in_model is not None and not getattr(in_model["fn"], "has_rsample", False)
        )


def index_role(plate: str) -> str:
    """The role of the numbers of the rows that a plate around a site has."""
    return f"rows of {plate}"


def traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Trace, Trace]:
    """The traces of model and guide, as ``pyro.infer.enum.get_importance_trace`` makes them."""
    messenger = poutine.unwrap(guide)
    if isinstance(messenger, Messenger):
        guide(*args, **kwargs)
        model_trace, guide_trace = messenger.get_traces()  # type: ignore[attr-defined]
    else:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
