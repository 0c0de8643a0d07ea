"""Gives a site of the guide all its values at once, or several samples, in a dim of its own, where it asks for that.

It asks for all values by ``infer={"estimator": "enumerate"}``, for K samples by ``infer={"num_samples": K}`` beside the
baseline ``use_leave_one_out``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from torch import Tensor

from sgc.config import ENUMERATE
from sgc.errors import EnumerationError
from sgc.tracing.asked_estimators import detaches, without_rsample
from sgc.tracing.baseline_options import LEAVE_ONE_OUT
from sgc.tracing.reference.enumerable_sites import check_enumerable, note_plates
from sgc.tracing.source import current_line

Program = Callable[..., Any]

VALUES_DIM = "_values_dim"
"""In the ``infer`` of a site that has all its values, or several samples: the dim, negative, that they are in."""

_PYROS_DIM = "_enumerate_dim"
"""Pyro's name for it: by that it would refuse a density of the model that reads what the guide draws below the site,
``p(z | w)`` beside ``q(w | z)``, whose batch has an element for each value, too."""


def samples_asked(infer: Any) -> int:
    """How many samples side by side a statement asks for; 0: for none."""
    infer = infer or {}
    baseline, count = infer.get("baseline"), infer.get("num_samples")
    leaves_one_out = isinstance(baseline, Mapping) and baseline.get(LEAVE_ONE_OUT) is True
    return count if leaves_one_out and isinstance(count, int) and count > 1 else 0


def _asks_for_values(msg: Any) -> bool:
    return not msg["is_observed"] and (msg["infer"] or {}).get("estimator") == ENUMERATE


def _asks_for_samples(msg: Any) -> bool:
    return not msg["is_observed"] and not _asks_for_values(msg) and samples_asked(msg["infer"]) > 0


def enumerated_as_asked(
    model: Program, guide: Program, first_dim: int, in_plates: dict[str, tuple[str, ...]] | None = None
) -> tuple[Program, Program]:
    """Model and guide, so that the guide's sites that ask for it have all their values, or several samples, in dims to
    the left of all plates. What Pyro's ``TraceEnum_ELBO`` would enumerate beside them is sampled.

    :param first_dim: the rightmost dim, negative, that a site may have its values in.
    :param in_plates: is told the sites that have them for each element of vectorised plates, with these.
    """
    in_plates = {} if in_plates is None else in_plates
    return _AskedEnumeration(None, in_plates)(model), _AskedEnumeration(first_dim, in_plates)(guide)


def probability(site: Any, log_prob: Tensor) -> Tensor:
    """The probability of each value of such a site; of each of several samples, one over their number.

    :param log_prob: the density in the guide, without scale and mask.
    """
    if site["infer"].get("num_samples") is None:
        return log_prob.exp()
    dim = site["infer"][VALUES_DIM]
    count = log_prob.shape[dim]
    return torch.full((count, *[1] * (-1 - dim)), 1 / count, dtype=log_prob.dtype, device=log_prob.device)


class _AskedEnumeration(EnumMessenger):
    """Pyro's ``EnumMessenger``, for these sites alone."""

    def __init__(self, first_dim: int | None, in_plates: dict[str, tuple[str, ...]]) -> None:
        super().__init__(first_available_dim=first_dim)
        self._in_plates = in_plates
        self._next_dim = -1
        """The rightmost dim to the left of all values so far."""

    def __enter__(self) -> Self:
        self._next_dim = -1
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        own = msg["infer"] or {}
        in_guide = self.first_available_dim is not None
        values, samples = in_guide and _asks_for_values(msg), in_guide and _asks_for_samples(msg)
        asks = values or samples
        if values:
            check_enumerable(msg)
            _check_unmasked(msg)
            msg["infer"] = {name: option for name, option in own.items() if name != "num_samples"}
        elif samples:
            if detaches(own):
                msg["fn"] = without_rsample(msg["fn"])
            msg["infer"] = {**own, "expand": True}  # a sample for each value of the sites above
        if asks:
            note_plates(msg, self._in_plates)
            msg["infer"]["enumerate"] = "parallel"
            if "_markov_scope" not in own:
                # Pyro would give it a dim of a pyro.markov before it, and then take that chain's values for its own.
                _ENUM_ALLOCATOR.next_available_dim = min(_ENUM_ALLOCATOR.next_available_dim, self._next_dim)
        elif "enumerate" in own:
            msg["infer"] = {name: option for name, option in own.items() if name != "enumerate"}
        super()._pyro_sample(msg)
        if asks and _PYROS_DIM not in msg["infer"]:
            raise EnumerationError(
                "its value is given by an effect handler, so that it cannot have several",
                site=msg["name"],
                source=current_line(),
                remedy="leave the handler out, or what the site asks for",
            )
        if asks:
            msg["infer"][VALUES_DIM] = msg["infer"].pop(_PYROS_DIM)
            self._next_dim = min(self._next_dim, msg["infer"][VALUES_DIM] - 1)
            _check_apart(msg)
        msg["infer"].pop("enumerate", None)  # else Pyro warns that it takes another class
        if "enumerate" in own and not asks:
            msg["infer"]["enumerate"] = own["enumerate"]


def _check_unmasked(msg: Any) -> None:
    """Refuse a masked distribution: its density, zero where it is masked, does not say how probable a value is."""
    fn = msg["fn"]
    while fn is not None:
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            raise EnumerationError(
                "its distribution is masked, so that its density does not say how probable its values are",
                site=msg["name"],
                source=current_line(),
                remedy="mask the statement, by poutine.mask(mask=...), in the place of the distribution",
            )
        fn = getattr(fn, "base_dist", None)


def _check_apart(msg: Any) -> None:
    """Refuse a site whose distribution has the values of another one in the dim of its own."""
    dim, shape = msg["infer"][VALUES_DIM], msg["fn"].batch_shape
    if len(shape) >= -dim and shape[dim] != 1:
        raise EnumerationError(
            "it depends on another enumerated site, and pyro.markov lets both have their values in one dim",
            site=msg["name"],
            source=current_line(),
            remedy="read a site within the scope of its pyro.markov, give that a larger history, or leave it out",
        )


class AsksForSeveralValuesError(Exception):
    """A site asks for all its values, or several samples, in a run in which none has them."""


class NoticedEnumeration(Messenger):
    """Ends a run in which a site asks for all its values, or several samples, before it is sampled."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin) and not msg["done"]:
            if _asks_for_values(msg) or _asks_for_samples(msg):
                raise AsksForSeveralValuesError
