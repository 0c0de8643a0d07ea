"""Gives a site all its values at once, or several samples, in a dim of its own, where it asks for that.

In the guide it asks for all values by ``infer={"estimator": "enumerate"}``, for K samples by
``infer={"num_samples": K}`` beside the baseline ``use_leave_one_out``. In the model a site that the guide does not draw
asks to be summed out by ``infer={"estimator": "enumerate"}`` too, or in Pyro's words by
``infer={"enumerate": "parallel"}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from torch import Tensor

from sgc.config import ENUMERATE
from sgc.errors import EnumerationError
from sgc.tracing.reference.enumerable_sites import check_enumerable, note_plates
from sgc.tracing.site_options.asked_estimators import detaches, without_rsample
from sgc.tracing.site_options.baseline_options import LEAVE_ONE_OUT
from sgc.tracing.source import current_line

Program = Callable[..., Any]

VALUES_DIM = "_values_dim"
"""In the ``infer`` of a site of the guide that has all its values, or several samples: the dim, negative, that they are
in."""

SUMMED_OUT_DIM = "_enumerate_dim"
"""Pyro's name for it, which a site of the model alone keeps, for Pyro's sums over it. By that name Pyro would refuse a
density of the model that reads what the guide draws below the site, ``p(z | w)`` beside ``q(w | z)``, whose batch has
an element for each value, too."""


def values_dim(infer: Any) -> int | None:
    """The dim, negative, that a site has several values in, in the guide or in the model; None if it has one."""
    dim: int | None = infer.get(VALUES_DIM, infer.get(SUMMED_OUT_DIM))
    return dim


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


def asks_to_be_summed_out(infer: Any) -> bool:
    """Whether the statement of a site that the model alone has asks for the sum over it."""
    infer = infer or {}
    estimator = infer.get("estimator")
    return estimator == ENUMERATE or (estimator is None and infer.get("enumerate") == "parallel")


def enumerated_as_asked(
    model: Program, guide: Program, first_dim: int, in_plates: dict[str, tuple[str, ...]] | None = None
) -> tuple[Program, Program]:
    """Model and guide, so that the sites that ask for it have all their values, or several samples, in dims to the left
    of all plates. What Pyro's ``TraceEnum_ELBO`` would enumerate in the guide beside them is sampled.

    :param first_dim: the rightmost dim, negative, that a site may have its values in.
    :param in_plates: is told the sites that have them for each element of vectorised plates, with these.
    """
    in_plates, run = {} if in_plates is None else in_plates, _GuidesRun()
    return _AskedEnumeration(None, in_plates, run)(model), _AskedEnumeration(first_dim, in_plates, run)(guide)


def noticing_enumeration(model: Program, guide: Program) -> tuple[Program, Program]:
    """Model and guide, in which none has several values: they end by an :class:`AsksForSeveralValuesError` where a site
    asks for that, before it is sampled.
    """
    run = _GuidesRun()
    return _NoticedEnumeration(run, in_guide=False)(model), _NoticedEnumeration(run, in_guide=True)(guide)


@dataclass
class _GuidesRun:
    """What a run of the guide leaves for that of the model which follows: the names of its sites, and the rightmost dim
    to the left of all values so far.
    """

    names: set[str] = field(default_factory=set)
    next_dim: int = -1

    def begin(self) -> None:
        self.names.clear()
        self.next_dim = -1


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

    def __init__(self, first_dim: int | None, in_plates: dict[str, tuple[str, ...]], run: _GuidesRun) -> None:
        super().__init__(first_available_dim=first_dim)
        self._in_plates = in_plates
        self._run = run

    def __enter__(self) -> Self:
        if self.first_available_dim is not None:
            self._run.begin()
        else:
            # Pyro would let a pyro.markov of the model have the dims of one of the guide.
            self._move_left()
        return super().__enter__()

    def _move_left(self) -> None:
        """Let the next dims be to the left of all values so far."""
        _ENUM_ALLOCATOR.next_available_dim = min(_ENUM_ALLOCATOR.next_available_dim, self._run.next_dim)

    def _pyro_sample(self, msg: Any) -> None:
        own = msg["infer"] or {}
        in_guide = self.first_available_dim is not None
        if in_guide:
            self._run.names.add(msg["name"])
        values = _asks_for_values(msg) if in_guide else _is_summed_out(msg, self._run)
        samples = in_guide and _asks_for_samples(msg)
        asks = values or samples
        if values:
            check_enumerable(msg)
            _check_unmasked(msg)
            msg["infer"] = {name: option for name, option in own.items() if name != "num_samples"}
            msg["infer"]["estimator"] = ENUMERATE
        elif samples:
            if detaches(own):
                msg["fn"] = without_rsample(msg["fn"])
            msg["infer"] = {**own, "expand": True}  # a sample for each value of the sites above
        if asks:
            note_plates(msg, self._in_plates)
            msg["infer"]["enumerate"] = "parallel"
            if "_markov_scope" not in own:
                # Pyro would give it a dim of a pyro.markov before it, and then take that chain's values for its own.
                self._move_left()
        elif "enumerate" in own:
            msg["infer"] = {name: option for name, option in own.items() if name != "enumerate"}
        super()._pyro_sample(msg)
        if asks and SUMMED_OUT_DIM not in msg["infer"]:
            raise EnumerationError(
                "its value is given by an effect handler, so that it cannot have several",
                site=msg["name"],
                source=current_line(),
                remedy="leave the handler out, or what the site asks for",
            )
        if asks:
            dim = msg["infer"][SUMMED_OUT_DIM]
            self._run.next_dim = min(self._run.next_dim, dim - 1)
            _check_apart(msg, dim)
        if asks and in_guide:
            msg["infer"][VALUES_DIM] = msg["infer"].pop(SUMMED_OUT_DIM)
        msg["infer"].pop("enumerate", None)  # else Pyro warns that it takes another class
        if "enumerate" in own and not asks:
            msg["infer"]["enumerate"] = own["enumerate"]


def _is_summed_out(msg: Any, run: _GuidesRun) -> bool:
    """Whether a statement of the model is summed out.

    :raises EnumerationError: if it asks for that, and for something that cannot be had with it.
    """
    if msg["is_observed"] or msg["done"] or msg["name"] in run.names:
        return False
    if not isinstance(msg["fn"], TorchDistributionMixin):
        return False
    infer = msg["infer"] or {}
    if infer.get("enumerate") == "sequential":
        raise _not_in_the_model(msg, "'sequential'", "'parallel'")
    if not asks_to_be_summed_out(infer):
        return False
    if infer.get("num_samples") is not None:
        raise _not_in_the_model(msg, f"num_samples={infer['num_samples']}", "no num_samples, for the sum is exact")
    return True


def _not_in_the_model(msg: Any, asked: str, remedy: str) -> EnumerationError:
    return EnumerationError(
        f"the guide does not draw it, so that its values are summed out of the model at once, and it asks for {asked}",
        site=msg["name"],
        source=current_line(),
        remedy=f"ask for {remedy}, or sample it in the guide",
    )


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


def _check_apart(msg: Any, dim: int) -> None:
    """Refuse a site whose distribution has the values of another one in the dim of its own."""
    shape = msg["fn"].batch_shape
    if len(shape) >= -dim and shape[dim] != 1:
        raise EnumerationError(
            "it depends on another enumerated site, and pyro.markov lets both have their values in one dim",
            site=msg["name"],
            source=current_line(),
            remedy="read a site within the scope of its pyro.markov, give that a larger history, or leave it out",
        )


class AsksForSeveralValuesError(Exception):
    """A site asks for all its values, or several samples, in a run in which none has them."""


class _NoticedEnumeration(Messenger):
    def __init__(self, run: _GuidesRun, *, in_guide: bool) -> None:
        super().__init__()
        self._run = run
        self._in_guide = in_guide

    def __enter__(self) -> Self:
        if self._in_guide:
            self._run.begin()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if self._in_guide:
            self._run.names.add(msg["name"])
        if not isinstance(msg["fn"], TorchDistributionMixin) or msg["done"]:
            return
        in_guide = self._in_guide and (_asks_for_values(msg) or _asks_for_samples(msg))
        if in_guide or (not self._in_guide and _is_summed_out(msg, self._run)):
            raise AsksForSeveralValuesError
