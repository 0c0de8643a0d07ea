"""What a sample statement asks for by ``infer={"estimator": ...}``, as far as the draw of its sample goes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pyro.distributions import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch.distributions import Distribution

from sgc.graph.estimator_rules import rule_named


class AskedEstimators(Messenger):
    """For eager Pyro: where a site asks for an estimator that needs a detached sample, its distribution gives one.

    It stands outermost, so that it sees whether a statement is going to draw.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None or not msg["infer"]:
            return
        if detaches(msg["infer"]):
            msg["fn"] = without_rsample(msg["fn"])


def detaches(infer: Mapping[str, Any]) -> bool:
    """Whether the estimator that a statement asks for needs a detached sample."""
    rule = rule_named(infer.get("estimator"))
    return rule is not None and rule.needs.detached_sample


def base_distribution(fn: Any) -> Any:
    """The distribution within Pyro's wrappers: ``to_event``, ``mask``, ``expand``."""
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def as_given(fn: Any) -> Any:
    """The distribution of a statement, before :func:`without_rsample`."""
    return getattr(fn, "_as_given", fn)


def without_rsample(fn: Any) -> Any:
    """A distribution like this one that does without its ``rsample``, as after Pyro's ``fn.has_rsample_(False)``."""
    if not isinstance(fn, Distribution) or not fn.has_rsample:
        return fn
    detached: Any = copy.copy(fn)
    detached._as_given = fn
    if isinstance(getattr(type(fn), "has_rsample", None), property) and hasattr(fn, "base_dist"):
        detached.base_dist = without_rsample(fn.base_dist)
    else:
        detached.has_rsample = False
    return detached
