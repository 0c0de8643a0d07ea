"""The Pyro side of the capture: an effect handler that gives each sample an fx node of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

from pyro.distributions import Independent, NanMaskedMultivariateNormal, NanMaskedNormal
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.stable import Stable
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution, TorchDistributionMixin
from pyro.distributions.util import broadcast_shape, is_identically_zero, scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, fx
from torch.distributions import Distribution

from sgc.errors import EstimatorError, SourceLine
from sgc.graph.plan import Plan, SitePlan
from sgc.tracing import tracer
from sgc.tracing.leaves.opaque_calls import Attempt, opaque_log_prob, opaque_sample
from sgc.tracing.site_options.asked_estimators import base_distribution, without_rsample
from sgc.tracing.site_options.plate_subsamples import asks_per_datum, subsamples_around
from sgc.tracing.source import current_line
from sgc.tracing.values.reads import DATA_DEPENDENT


@dataclass(frozen=True)
class Statement:
    """What is known of a sample statement only while it runs.

    ``in_model`` is the line of the model's statement, where the guide has drawn its value; ``subsamples`` are those of
    the plates around it, where it asks for an average for each datum.
    """

    source: SourceLine | None
    value: Tensor | None
    node: fx.Node | None
    subsample: bool
    opaque: bool
    in_model: SourceLine | None = None
    subsamples: Mapping[str, Any] = field(default_factory=dict)


class SiteRecorder(Messenger):
    """Marks each sample's value and notes where it was declared.

    It stands outermost, where Pyro's own ``TrackNonReparam`` stands, and so sees the same statements.

    :param plan: what was decided for the sites.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self.statements: dict[str, Statement] = {}
        self.attempting: Callable[[], AbstractContextManager[None]] = nullcontext
        """A context around every attempt to trace; what fails becomes an opaque call."""
        self._opaque: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        if not isinstance(msg["fn"], Distribution):
            return
        if self._planned(msg).needs.detached_sample:
            msg["fn"] = without_rsample(msg["fn"])
        fn, args, kwargs = msg["fn"], msg["args"], msg["kwargs"]
        attempt = Attempt(fn, args, kwargs)
        try:
            with self.attempting():
                msg["value"] = fn(*args, **kwargs)  # type: ignore[operator]
        except DATA_DEPENDENT:
            msg["fn"], msg["args"], msg["kwargs"] = attempt.undo()
            msg["value"] = opaque_sample(msg["fn"], msg["args"], msg["kwargs"])
            self._opaque.add(msg["name"])

    def _planned(self, msg: Any) -> SitePlan:
        name, asked = msg["name"], (msg["infer"] or {}).get("estimator")
        if asked is not None and name not in self._plan.sites:
            raise EstimatorError(
                "a site that is not in each run of the guide under one name asks for an estimator",
                site=name,
                source=current_line(),
                remedy="let the name of the site not depend on a sample or a subsample, and sample it in the guide",
            )
        return self._plan.at(name)

    def _pyro_post_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        known = self.statements.get(name)
        if known is not None and known.value is value:
            self.statements[name] = replace(known, in_model=current_line())
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
            subsamples=subsamples_around(msg) if asks_per_datum(msg["infer"]) else {},
        )


@dataclass(frozen=True)
class HidingMask:
    """A mask below ``to_event`` (None: it hides everything), and how many dims each entry that it hides has."""

    mask: Tensor | None
    event_dims: int


@dataclass(frozen=True)
class SiteParts:
    """``ScoreParts`` of a site.

    Masks below ``to_event`` are in its score function as in Pyro's; ``whole_score`` is without them (None: unknown).
    ``unscaled`` is the log density without the scale and mask of the site.
    """

    parts: ScoreParts
    whole_score: Any
    masks: tuple[HidingMask, ...] = ()
    unscaled: Any = None


def score_parts(site: Any, *, in_guide: bool, line: SourceLine | None) -> SiteParts:
    """Pyro's ``ScoreParts`` of a traced site, scaled and masked; of a model site only the ``log_prob``.

    A density that branches on its data becomes one opaque node.

    :param line: the sample statement.
    """
    fn, value, args, kwargs = site["fn"], site["value"], site["args"], site["kwargs"]
    attempt = Attempt(fn, value, args, kwargs)
    try:
        own = _own_parts(fn, value, args, kwargs) if in_guide else _density_only(fn, value, args, kwargs)
    except DATA_DEPENDENT:
        if in_guide and type(fn).score_parts is not TorchDistributionMixin.score_parts:
            raise
        fn, value, args, kwargs = attempt.undo()
        _require_support(fn, value)
        log_prob = opaque_log_prob(fn, value, args, kwargs, line)
        own = _own(*((log_prob, 0, log_prob) if fn.has_rsample else (log_prob, log_prob, 0)))
    parts = own.parts.scale_and_mask(site["scale"], site["mask"])
    return replace(own, parts=parts, unscaled=own.parts.log_prob)


@contextmanager
def densities_as_leaves() -> Iterator[None]:
    """Record a density that branches on its data as one node where the program calls ``log_prob`` outside of a site."""

    def replaced(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def log_prob(self: Any, value: Tensor) -> Tensor:
            if not tracer.is_capturing():
                return original(self, value)
            attempt = Attempt(self, value)
            try:
                return original(self, value)
            except DATA_DEPENDENT:
                fn, value = attempt.undo()
                _require_support(fn, value)
                return opaque_log_prob(fn, value, (), {})

        return log_prob

    with ExitStack() as stack:
        for cls in _BRANCHING:
            stack.enter_context(mock.patch.object(cls, "log_prob", replaced(cls.log_prob)))
        yield


_BRANCHING = (Stable, NanMaskedNormal, NanMaskedMultivariateNormal)


def _require_support(fn: Any, value: Tensor) -> None:
    """Record the support check of a value, which an opaque density does not make."""
    fn = base_distribution(fn)
    if getattr(fn, "_validate_args", False):
        fn._validate_sample(value)


def _density_only(fn: Any, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SiteParts:
    return _own(fn.log_prob(value, *args, **kwargs), 0, 0)


def _own_parts(
    fn: Any, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], inside: bool = False
) -> SiteParts:
    """``fn.score_parts``, seen through ``to_event``, where Pyro forgets the parts of the distribution inside.

    :param inside: whether it stands in a distribution for which Pyro takes the density, masked, as the score function.
    """
    if type(fn) is Independent:
        inner = _own_parts(fn.base_dist, value, args, kwargs, True)
        return _each(inner, partial(sum_rightmost, dim=fn.reinterpreted_batch_ndims))
    if type(fn) is ExpandedDistribution:
        inner = _own_parts(fn.base_dist, value, args, kwargs, inside)
        shape = broadcast_shape(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
        return inner if fn.batch_shape == fn.base_dist.batch_shape else _each(inner, lambda part: part.expand(shape))
    if type(fn) is MaskedDistribution:
        return _masked_parts(fn, value, args, kwargs, inside)
    return _own(*fn.score_parts(value, *args, **kwargs))


def _masked_parts(
    fn: MaskedDistribution, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], inside: bool
) -> SiteParts:
    mask: Any = fn._mask
    if mask is False:
        parts = fn.score_parts(value)
        if fn.has_rsample:
            return _own(*parts)
        try:
            whole = _own_parts(fn.base_dist, value, args, kwargs, True).whole_score
        except NotImplementedError:  # what is masked may have no density
            whole = None
        return SiteParts(parts, whole, (HidingMask(None, 0),))
    inner = _own_parts(fn.base_dist, value, args, kwargs, inside or mask is True)
    if mask is True:
        return inner
    log_prob, score, entropy = (scale_and_mask(part, mask=mask) for part in inner.parts)
    if not inside or is_identically_zero(inner.parts.score_function):
        return replace(inner, parts=_parts(log_prob, inner.parts.score_function, entropy))
    if inner.parts.score_function is inner.parts.log_prob:
        score = log_prob
    masks = (*inner.masks, HidingMask(mask, fn.event_dim))
    return SiteParts(_parts(log_prob, score, entropy), inner.whole_score, masks)


def _each(own: SiteParts, change: Callable[[Tensor], Tensor]) -> SiteParts:
    """Apply ``change`` to each part that is a tensor, once to each tensor."""
    changed: dict[int, Tensor] = {}

    def one(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        if id(part) not in changed:
            changed[id(part)] = change(part)
        return changed[id(part)]

    return replace(own, parts=_parts(*map(one, own.parts)), whole_score=one(own.whole_score))


def _own(log_prob: Any, score_function: Any, entropy_term: Any) -> SiteParts:
    return SiteParts(_parts(log_prob, score_function, entropy_term), score_function)


def _parts(log_prob: Any, score_function: Any, entropy_term: Any) -> ScoreParts:
    """``ScoreParts``, whose terms may be the number 0 although Pyro's types say tensor."""
    return ScoreParts(log_prob, score_function, entropy_term)
