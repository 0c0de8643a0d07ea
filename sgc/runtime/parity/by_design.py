"""Eager Pyro without those of its faults that sgc does not share, and what each of them does to a program.

The faults are those of ``docs/pyro-differences.md``. Where sgc and ``TraceGraph_ELBO`` differ, this is what tells a
fault of Pyro's from an error of sgc's: with the faults taken away Pyro's numbers must be sgc's. Nothing here is
computed by the captured program; only which estimator sgc has chosen is read from its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import is_identically_zero, sum_rightmost
from pyro.infer.enum import get_importance_trace
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from sgc.config import Objective
from sgc.graph.graph import StochasticGraph
from sgc.graph.nodes import BaselineNode, Estimator, SiteNode
from sgc.graph.program import SiteKind
from sgc.passes.objectives.closed_forms import DivergenceNode
from sgc.runtime.parity.eager_costs import take_closed_form
from sgc.runtime.parity.eager_provenance import Provenance, followed
from sgc.tracing.leaves.autograd_functions import applying, original_apply
from sgc.tracing.reference.loss_of_objective import PYRO_LOSSES
from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.reference.pyro_renyi import PyroImportanceWeighted
from sgc.tracing.reference.pyro_trace_graph import PyroTraceGraph
from sgc.tracing.sample_sites import samples
from sgc.tracing.site_options.asked_estimators import AskedEstimators, base_distribution
from sgc.tracing.source import current_line


class Fault(Enum):
    """What Pyro's ``TraceGraph_ELBO`` does wrong, or cannot do; the value is the title of its section in the docs."""

    PROVENANCE = "Below a discrete site tensors stay tensors"
    REJECTION = "The score-function term of rejection samplers is kept"
    LEAK = "A sample without `rsample` has no gradient"
    MASK = "Hidden entries below `to_event` that reach a cost"
    BASELINE = "A baseline at a pathwise site is not trained"
    UNKNOWN = "What a site may ask for and Pyro does not know"


WRITES = "Writes into tensors are followed"
"""The section of what :attr:`Fault.PROVENANCE` does to costs below a write in place or a copy."""


@dataclass
class Seen:
    """What happened in runs of eager Pyro, in words; each once."""

    words: dict[Fault, dict[str, str]] = field(default_factory=dict)
    provenance: dict[str, frozenset[str]] = field(default_factory=dict)

    def note(self, fault: Fault, text: str, title: str | None = None) -> None:
        """Something that the fault did, and the title of the section that tells of it."""
        self.words.setdefault(fault, {})[text] = title or fault.value

    def of(self, fault: Fault) -> Iterator[tuple[str, str]]:
        """What the fault did, if only that it did something, and where the docs tell of it."""
        for text, title in self.words.get(fault, {_OTHERWISE: fault.value}).items():
            yield text, f"docs/pyro-differences.md#{title.lower().replace('`', '').replace(' ', '-')}"


_OTHERWISE = "below a discrete site Pyro's ProvenanceTensor gives other numbers than a tensor"


class PyroWithout(PyroLoss):
    """One of eager Pyro's losses without some of its faults; ``seen`` collects what the others do.

    It is mixed into the reference of the objective, before it.

    :param graph: sgc's graph, for the estimators of the sites.
    """

    def __init__(self, graph: StochasticGraph, without: Collection[Fault], seen: Seen, **options: Any) -> None:
        super().__init__(as_asked=Fault.UNKNOWN in without, **options)
        latent = graph.sites(SiteKind.LATENT)
        self._tracks = isinstance(self, PyroTraceGraph)
        self._pyros = next(cls.__name__ for cls in type(self).__mro__ if cls.__module__.startswith("pyro."))
        if not self._tracks:  # only that class follows samples, by tensors of its own
            without = {*without, Fault.PROVENANCE}
        self._without, self._seen = frozenset(without), seen
        self._partial = {name for name in latent if _is_partial(graph, name)}
        self._own_baselines = [b for b in graph.of_type(BaselineNode) if b.crosses_particles]
        self._asked = {name: graph.estimator(name) for name in latent if graph.is_asked(name)}
        divergences = graph.of_type(DivergenceNode) if isinstance(self, PyroTraceGraph) else ()
        self._in_closed_form = [node.site for node in divergences]
        self._baselines = {node.site: f"with the baseline {node.words()}" for node in graph.of_type(BaselineNode)}
        self._unmasked = {name for name in latent if graph.scores_hidden_entries(name)}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        provenance = Provenance()
        with ExitStack() as stack:
            if self._tracks and (Fault.PROVENANCE in self._without or self._partial):
                # Under any mode of this kind torch.tensor(z) is followed, which in plain Pyro it is not.
                stack.enter_context(followed(provenance))
            if Fault.PROVENANCE not in self._without:
                sites = stack.enter_context(_CurrentSite())
                stack.enter_context(_observed(self._seen, sites))
            if self.as_asked:
                stack.enter_context(AskedEstimators())
            stack.enter_context(_Samples(self, provenance))
            graph_type = "dense" if self._tracks else "flat"
            traces = get_importance_trace(
                graph_type, self.max_plate_nesting, *self.as_it_asks(model, guide), args, kwargs
            )
            for name in self._in_closed_form if self.as_asked else ():
                take_closed_form(traces[1].nodes[name], traces[0].nodes[name])
            for trace in traces if self._tracks else ():
                for site in samples(trace):
                    names = provenance.of(site["log_prob"])
                    for key in ("log_prob", "log_prob_sum"):
                        site[key] = track_provenance(site[key], names)
        if self._tracks:
            self._look_at_costs(traces)
        self._look_at_requests()
        for site in samples(traces[1]):
            self._mend_score(site)
        return self.finished(traces)

    def _look_at_costs(self, traces: tuple[Trace, Trace]) -> None:
        """Note the costs that have lost a sample, once their whole provenance is known."""
        for trace, key in zip(traces, ("log p({})", "-log q({})"), strict=True):
            for site in samples(trace):
                cost, names = key.format(site["name"]), get_provenance(site["log_prob_sum"])
                if Fault.PROVENANCE in self._without:
                    self._seen.provenance[cost] = names
                lost = self._seen.provenance.get(cost, frozenset()) - names
                if lost:
                    text = f"{cost} depends on {', '.join(sorted(lost))}; Pyro's provenance loses that"
                    self._seen.note(Fault.PROVENANCE, text, WRITES)

    def _look_at_requests(self) -> None:
        if isinstance(self, PyroImportanceWeighted):
            self._seen.note(
                Fault.UNKNOWN,
                "score functions are multiplied by what a particle adds to the bound; Pyro's RenyiELBO of order 0 "
                "multiplies them by its normalised weight, which is biased",
            )
        for name in self._in_closed_form:
            text = f"of '{name}' the closed form of KL(q || p) is taken; Pyro's TraceGraph_ELBO takes both densities"
            self._seen.note(Fault.UNKNOWN, text)
        for baseline in self._own_baselines:
            self._seen.note(
                Fault.UNKNOWN, f"'{baseline.site}' has a baseline that Pyro does not know: {baseline.words()}"
            )
        for name, estimator in self._asked.items():
            text = f"'{name}' asks for the estimator '{estimator.value}', which Pyro chooses by the distribution alone"
            if self.option is not None:
                less = self._baselines.get(name) or "without a baseline"
                text = (
                    f"'{name}' asks for the estimator '{estimator.value}', {less}; the option estimators is not "
                    "Pyro's, which goes by the distribution and infer['baseline'] alone"
                )
            self._seen.note(Fault.UNKNOWN, text)

    def _mend_score(self, site: Any) -> None:
        name, fn, value, parts = site["name"], site["fn"], site["value"], site["score_parts"]
        if name in self._partial:
            text = f"'{name}' is rejection-sampled; Pyro's {self._pyros} leaves out its score-function term"
            self._seen.note(Fault.REJECTION, text)
            if Fault.REJECTION in self._without:
                site["score_parts"] = parts._replace(score_function=_own_score(fn, value))
        elif name in self._unmasked:
            text = (
                f"'{name}' is masked below to_event, and its hidden entries reach a cost; "
                "Pyro leaves them out of its score function"
            )
            self._seen.note(Fault.MASK, text)
            if Fault.MASK in self._without:
                site["score_parts"] = parts._replace(score_function=_own_score(fn, value))

    def tracked(self, msg: Any, in_guide: bool | None, provenance: Provenance) -> Tensor:
        """The value of a sample statement, marked if its score is to be multiplied by the costs below it.

        :param in_guide: at a site that the guide has drawn, whether it has an ``rsample`` there.
        """
        value, scored = self._value(msg, in_guide)
        if not scored:
            return value
        names = frozenset({msg["name"]})
        if Fault.PROVENANCE in self._without or msg["name"] in self._partial:
            # A rejection sampler knows its own sample by its identity.
            provenance.add(value, names)
            return value
        marked: Tensor = track_provenance(value, names)
        return marked

    def _value(self, msg: Any, in_guide: bool | None) -> tuple[Tensor, bool]:
        """The value of a sample statement, and whether it is to be marked."""
        name, value, has_rsample = msg["name"], msg["value"], getattr(msg["fn"], "has_rsample", False)
        if name in self._partial:
            return value, Fault.REJECTION in self._without
        if in_guide:
            if not has_rsample and "baseline" in msg["infer"]:
                self._seen.note(
                    Fault.BASELINE,
                    f"'{name}' is pathwise in the guide, so that its baseline is subtracted from nothing; Pyro trains "
                    "it, because the distribution in the model has no rsample",
                )
            return value, not has_rsample and Fault.BASELINE not in self._without
        if value.requires_grad and not has_rsample and in_guide is None:
            self._seen.note(Fault.LEAK, f"'{name}' has no rsample; Pyro lets a gradient leak through its sampler")
            if Fault.LEAK in self._without:
                return value.detach(), True
        return value, not has_rsample


def _is_partial(graph: StochasticGraph, name: str) -> bool:
    """Whether a site has a score function beside a pathwise gradient."""
    site = graph.payload(name)
    assert isinstance(site, SiteNode)
    return site.estimator == Estimator.PARTIAL or (site.estimator == Estimator.DICE and site.has_rsample)


class _Samples(Messenger):
    """Stands where Pyro's ``TrackNonReparam`` stands, and marks what that should."""

    def __init__(self, elbo: PyroWithout, provenance: Provenance) -> None:
        super().__init__()
        self._elbo, self._provenance = elbo, provenance
        self._drawn: dict[str, bool] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample) or not isinstance(msg["value"], Tensor):
            return
        name = msg["name"]
        msg["value"] = self._elbo.tracked(msg, self._drawn.get(name), self._provenance)
        self._drawn.setdefault(name, getattr(msg["fn"], "has_rsample", False))


class _CurrentSite(Messenger):
    """The sample statement that is being run."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ""

    def _pyro_sample(self, msg: Any) -> None:
        self.words = f"'{msg['name']}' ({type(base_distribution(msg['fn'])).__name__})"

    def _pyro_post_sample(self, msg: Any) -> None:
        self.words = ""

    def __str__(self) -> str:
        return self.words or f"what is computed at {current_line() or 'a density'}"


@contextmanager
def _observed(seen: Seen, place: object) -> Iterator[None]:
    """Note each operation that a ``ProvenanceTensor`` spoils."""

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        names = get_provenance(args)
        if names and torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args):
            seen.note(
                Fault.PROVENANCE,
                f"{place} is below {', '.join(sorted(names))}, where Pyro's ProvenanceTensor loses the gradient of "
                f"{cls.__name__}, an autograd.Function",
            )
        return original_apply(cls, *args, **kwargs)

    class Constructors(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.new and get_provenance(args) and any(isinstance(size, torch.Size) for size in args):
                names, size = sorted(get_provenance(args)), next(size for size in args if isinstance(size, torch.Size))
                seen.note(
                    Fault.PROVENANCE,
                    f"{place} is below {', '.join(names)}, where Tensor.new of Pyro's ProvenanceTensor makes "
                    f"{len(size)} random number{'s' * (len(size) != 1)} of a batch of shape {list(size)}",
                )
            return func(*args, **(kwargs or {}))

    with applying(apply), Constructors():
        yield


def _own_score(fn: Any, value: Tensor) -> Any:
    """The score function of the distribution inside, with no mask, summed to the shape of ``fn.log_prob``."""
    if isinstance(fn, MaskedDistribution):
        return _own_score(fn.base_dist, value)
    if isinstance(fn, ExpandedDistribution):
        inner = _own_score(fn.base_dist, value)
        return inner if is_identically_zero(inner) else inner.expand(fn.log_prob(value).shape)
    if isinstance(fn, Independent):
        inner = _own_score(fn.base_dist, value)
        return inner if is_identically_zero(inner) else sum_rightmost(inner, fn.reinterpreted_batch_ndims)
    return fn.score_parts(value).score_function


def pyro_without(
    objective: Objective, graph: StochasticGraph, without: Collection[Fault], seen: Seen
) -> Callable[..., PyroLoss]:
    """Makes Pyro's loss of an objective without these faults."""
    mended = type("Mended", (PyroWithout, PYRO_LOSSES[objective]), {})
    return partial(mended, graph, without, seen)
