"""The option ``estimators``: at the statements of the guide it stands in the place of what ``infer`` asks for there.

At those of sites that the model alone has it says which are summed out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Self

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from sgc.config import AUTO, AVERAGE_PER_DATUM, BASELINES, ENUMERATE, EstimatorName, Options
from sgc.graph.estimator_rules import Sampler
from sgc.tracing.site_options.asked_estimators import as_given
from sgc.tracing.site_options.baseline_options import LEAVE_ONE_OUT, PER_DATUM
from sgc.tracing.site_options.site_requests import sampler_of

_DECAYING_AVERAGE = "use_decaying_avg_baseline"
_BETA = "baseline_beta"
_LEARNED = ("nn_baseline", "baseline_value")

Program = Callable[..., Any]


class EstimatorOption(Messenger):
    """Wraps a guide, so that its latent sites ask for what the option says.

    A site's own name goes before what stands in its ``infer``, and that before a pattern; of the patterns the first one
    that the name matches counts. A baseline by a pattern is for sites with a score function alone, and ``"enumerate"``
    for those with a finite support. At sites that ask
    for ``"auto"`` it is what was measured, once something was.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._asked = options.estimators
        self._by_name = dict(options.estimators)
        self._measured = dict(options.measured)
        self.drawn: set[str] = set()
        """The sites of the guide's latest run."""

    @classmethod
    def of(cls, options: Options) -> EstimatorOption | None:
        """None if the options ask for nothing."""
        return cls(options) if options.estimators or options.measured else None

    def of_both(self, model: Program, guide: Program) -> tuple[Program, Program]:
        """Model and guide, which is to run first: its sites are those that the model does not have alone."""
        return _InModel(self)(model), self(guide)

    def __enter__(self) -> Self:
        self.drawn.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        self.drawn.add(msg["name"])
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        infer = msg["infer"] or {}
        wanted = self._wanted(msg["name"], infer, sampler_of(as_given(msg["fn"])))
        if wanted is None:
            return
        if wanted == AUTO and msg["name"] in self._measured:
            wanted = self._measured[msg["name"]]
        msg["infer"] = _asking(infer, wanted, msg["fn"])

    def wanted_in_model(self, msg: Any) -> EstimatorName | None:
        """What a site of the model alone is to have; by a pattern nothing but to be summed out."""
        name, infer = msg["name"], msg["infer"] or {}
        if name in self._by_name:
            return self._by_name[name]
        enumerable = sampler_of(as_given(msg["fn"])).enumerable
        wanted = next((wanted for pattern, wanted in self._asked if fnmatchcase(name, pattern)), None)
        return wanted if wanted == ENUMERATE and enumerable and infer.get("estimator") is None else None

    def _wanted(self, name: str, infer: Mapping[str, Any], sampler: Sampler) -> EstimatorName | None:
        if name in self._by_name:
            return self._by_name[name]
        own = infer.get("estimator")
        if own == AUTO:
            return AUTO
        if own is not None or _is_on(infer.get("baseline")):
            return None
        wanted = next((wanted for pattern, wanted in self._asked if fnmatchcase(name, pattern)), None)
        if (wanted in BASELINES and sampler.is_pathwise) or (wanted == ENUMERATE and not sampler.enumerable):
            return None
        return wanted


class _InModel(Messenger):
    def __init__(self, option: EstimatorOption) -> None:
        super().__init__()
        self._option = option

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample) or msg["name"] in self._option.drawn:
            return
        wanted = self._option.wanted_in_model(msg)
        if wanted is not None:
            msg["infer"] = {**(msg["infer"] or {}), "estimator": wanted}


def _is_on(baseline: Any) -> bool:
    if not isinstance(baseline, Mapping):
        return baseline is not None
    return any(option is not None and option is not False for option in baseline.values())


def _asking(infer: Mapping[str, Any], wanted: EstimatorName | None, fn: Any) -> dict[str, Any]:
    """``infer`` of a statement that asks for this, and for nothing else of the kind; None: for nothing."""
    kept = {key: value for key, value in infer.items() if key not in ("estimator", "baseline")}
    own = infer.get("baseline")
    options: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
    if wanted is None:
        return kept
    if wanted == AUTO:
        # A learned baseline is left there for the error that says why nothing can be measured.
        learned = {"baseline": own} if any(options.get(option) is not None for option in _LEARNED) else {}
        return {**kept, "estimator": AUTO, **learned}
    if wanted not in BASELINES:
        return {**kept, "estimator": wanted}
    sampler = sampler_of(as_given(fn))
    is_rejection_sampler = sampler.has_rsample and sampler.has_score_function
    asking = {**kept, "estimator": "partially pathwise" if is_rejection_sampler else "score function"}
    if wanted == "leave-one-out":
        return {**asking, "baseline": {LEAVE_ONE_OUT: True}}
    beta = {_BETA: options[_BETA]} if _BETA in options else {}
    per_datum = {PER_DATUM: True} if wanted == AVERAGE_PER_DATUM else {}
    return {**asking, "baseline": {_DECAYING_AVERAGE: True, **per_datum, **beta}}
