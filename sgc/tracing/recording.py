"""Runs Pyro's traces while fx records, and collects what the captured program must output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from sgc.graph.plan import WITH_BASELINES, Plan
from sgc.graph.program import Baseline
from sgc.graph.sizes import shape_of
from sgc.tracing.baseline_options import ModelBaselines, errors_of, read_options, value_of_network
from sgc.tracing.site_recorder import SiteParts, SiteRecorder, score_parts
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
        self.recorder = SiteRecorder(plan)
        self.reads: list[ReadGuard] = []
        self.requirements: list[Requirement] = []
        self.outputs: list[Tensor] = []
        self.model_trace: Trace
        self.guide_trace: Trace
        self.slots: dict[tuple[str, str], int] = {}
        self.baselines: dict[str, Baseline] = {}
        self.masks: dict[str, list[int]] = {}
        self.model_baselines = ModelBaselines()
        self.transcript = Transcript()

    def run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Trace guide and model, then evaluate every density and baseline, in Pyro's order."""
        with self.recorder:
            self.model_trace, self.guide_trace = _traces(self.model_baselines(model), guide, args, kwargs)
        for site in samples(self.model_trace):
            self._output(site["name"], "model.log_prob", self._score_parts(site, in_guide=False).parts.log_prob)
        for site in samples(self.guide_trace):
            name, own = site["name"], self._score_parts(site, in_guide=True)
            self._output(name, "guide.log_prob", own.parts.log_prob)
            if not is_identically_zero(own.parts.entropy_term):
                self._output(name, "guide.entropy_term", own.parts.entropy_term)
            if not is_identically_zero(own.parts.score_function):
                self._score_function(name, own)
        for site in samples(self.guide_trace) if self._with_baselines else ():
            if "baseline" in site["infer"] and not site["is_observed"]:
                self._baseline(site)

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
        """Note the sample statements of this run in its transcript."""
        sources = {name: statement.source for name, statement in self.recorder.statements.items()}
        self.transcript.note_sites((self.model_trace, self.guide_trace), sources, named_by_samples=named_by_samples)

    def _score_parts(self, site: Any, *, in_guide: bool) -> SiteParts:
        known = len(self.requirements)
        with self.recorder.attempting():
            own = score_parts(site, in_guide=in_guide)
        for requirement in self.requirements[known:]:
            requirement.site, requirement.source = site["name"], self.recorder.statements[site["name"]].source
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
        )

    def _is_scored_by_pyro(self, name: str) -> bool:
        """Whether Pyro asks for a baseline: if the sample is not reparameterised in the guide, or in the model."""
        in_model = self.model_trace.nodes.get(name)
        return (name, "guide.score_function") in self.slots or (
            in_model is not None and not getattr(in_model["fn"], "has_rsample", False)
        )


def _traces(
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


def samples(trace: Trace) -> list[Any]:
    """The sample statements of a trace, in order."""
    return [site for site in trace.nodes.values() if site["type"] == "sample"]
