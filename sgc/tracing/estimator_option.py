"""The option ``estimators``: at the statements of the guide it stands in the place of what ``infer`` asks for there."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from sgc.config import AUTO, AVERAGE_PER_DATUM, BASELINES, ENUMERATE, EstimatorName, Options
from sgc.graph.estimator_rules import Sampler
from sgc.tracing.asked_estimators import as_given
from sgc.tracing.baseline_options import LEAVE_ONE_OUT, PER_DATUM
from sgc.tracing.site_requests import sampler_of

_DECAYING_AVERAGE = "use_decaying_avg_baseline"
_BETA = "baseline_beta"
_LEARNED = ("nn_baseline", "baseline_value")


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

    @classmethod
    def of(cls, options: Options) -> EstimatorOption | None:
        """None if the options ask for nothing."""
        return cls(options) if options.estimators or options.measured else None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        infer = msg["infer"] or {}
        wanted = self._wanted(msg["name"], infer, sampler_of(as_given(msg["fn"])))
        if wanted is None:
            return
        if wanted == AUTO and msg["name"] in self._measured:
            wanted = self._measured[msg["name"]]
        msg["infer"] = _asking(infer, wanted, msg["fn"])

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
