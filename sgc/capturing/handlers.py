"""The Pyro side of the capture: an effect handler that gives each sample an fx node of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.distributions import Independent
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution, TorchDistributionMixin
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, fx
from torch.distributions import Distribution

from sgc.capturing import tracer
from sgc.capturing.opaque import Attempt, opaque_log_prob, opaque_sample
from sgc.capturing.reads import DATA_DEPENDENT
from sgc.capturing.source import current_line
from sgc.errors import SourceLine


@dataclass(frozen=True)
class Statement:
    """What is known of a sample statement only while it runs."""

    source: SourceLine | None
    value: Tensor | None
    node: fx.Node | None
    subsample: bool
    opaque: bool


class SiteRecorder(Messenger):
    """Marks each sample's value and notes where it was declared.

    It stands outermost, where Pyro's own ``TrackNonReparam`` stands, and so sees the same statements.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statements: dict[str, Statement] = {}
        self._opaque: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        fn, args, kwargs = msg["fn"], msg["args"], msg["kwargs"]
        if not isinstance(fn, Distribution):
            return
        attempt = Attempt(fn, args, kwargs)
        try:
            msg["value"] = fn(*args, **kwargs)  # type: ignore[operator]
        except DATA_DEPENDENT:
            msg["fn"], msg["args"], msg["kwargs"] = attempt.undo()
            msg["value"] = opaque_sample(msg["fn"], msg["args"], msg["kwargs"])
            self._opaque.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        known = self.statements.get(name)
        if known is not None and known.value is value:
            return
        node = None
        if isinstance(value, Tensor):
            if msg["is_observed"]:
                node = tracer.node_of(value)
            else:
                if value.requires_grad and not getattr(msg["fn"], "has_rsample", True):
                    # Some samplers without reparameterisation leak a gradient (SineBivariateVonMises).
                    value = value.detach()
                value, node = tracer.mark(value, name)
                msg["value"] = value
        self.statements[name] = Statement(
            source=current_line(),
            value=value if isinstance(value, Tensor) else None,
            node=node,
            subsample=isinstance(msg["fn"], _Subsample),
            opaque=name in self._opaque,
        )


def score_parts(site: Any, *, in_guide: bool) -> ScoreParts:
    """Pyro's ``ScoreParts`` of a traced site, scaled and masked; of a model site only the ``log_prob``.

    A density that branches on its data becomes one opaque node.
    """
    fn, value, args, kwargs = site["fn"], site["value"], site["args"], site["kwargs"]
    attempt = Attempt(fn, value, args, kwargs)
    try:
        own = _own_parts if in_guide else _density_only
        parts = own(fn, value, args, kwargs)
    except DATA_DEPENDENT:
        if in_guide and type(fn).score_parts is not TorchDistributionMixin.score_parts:
            raise
        fn, value, args, kwargs = attempt.undo()
        _require_support(fn, value)
        log_prob = opaque_log_prob(fn, value, args, kwargs)
        parts = _parts(log_prob, 0, log_prob) if fn.has_rsample else _parts(log_prob, log_prob, 0)
    return parts.scale_and_mask(site["scale"], site["mask"])


def _require_support(fn: Any, value: Tensor) -> None:
    """Record the check of a value that an opaque density will not make."""
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    if getattr(fn, "_validate_args", False):
        fn._validate_sample(value)


def _density_only(fn: Any, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ScoreParts:
    return _parts(fn.log_prob(value, *args, **kwargs), 0, 0)


def _own_parts(fn: Any, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ScoreParts:
    """``fn.score_parts``, seen through ``to_event``, where Pyro forgets the parts of the distribution inside."""
    if not isinstance(fn, Independent) or type(fn.base_dist).score_parts is TorchDistributionMixin.score_parts:
        return fn.score_parts(value, *args, **kwargs)
    inner = _own_parts(fn.base_dist, value, args, kwargs)
    rightmost = fn.reinterpreted_batch_ndims
    return _parts(*(sum_rightmost(part, rightmost) if isinstance(part, Tensor) else part for part in inner))


def _parts(log_prob: Any, score_function: Any, entropy_term: Any) -> ScoreParts:
    """Pyro's own terms may be the number 0 where its types say tensor."""
    return ScoreParts(log_prob, score_function, entropy_term)
