"""Gives a site of the guide all its values at once, where it asks for that by ``infer={"estimator": "enumerate"}``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR

from sgc.config import ENUMERATE
from sgc.errors import EnumerationError
from sgc.tracing.reference.enumerable_sites import check_enumerable, note_plates
from sgc.tracing.source import current_line

Program = Callable[..., Any]

VALUES_DIM = "_values_dim"
"""In the ``infer`` of a site that has all its values: the dim, negative, that they are in."""

_PYROS_DIM = "_enumerate_dim"
"""Pyro's name for it: by that it would refuse a density of the model that reads what the guide draws below the site,
``p(z | w)`` beside ``q(w | z)``, whose batch has an element for each value, too."""


def asks_for_all_values(msg: Any) -> bool:
    """Whether a sample statement, or the site that it has become, asks for that."""
    return not msg["is_observed"] and (msg["infer"] or {}).get("estimator") == ENUMERATE


def enumerated_as_asked(
    model: Program, guide: Program, first_dim: int, in_plates: dict[str, tuple[str, ...]] | None = None
) -> tuple[Program, Program]:
    """Model and guide, so that the guide's sites that ask for it have all their values, in dims to the left of all
    plates. What Pyro's ``TraceEnum_ELBO`` would enumerate beside them is sampled.

    :param first_dim: the rightmost dim, negative, that a site may have its values in.
    :param in_plates: is told the sites that have them for each element of vectorised plates, with these.
    """
    in_plates = {} if in_plates is None else in_plates
    return _AskedEnumeration(None, in_plates)(model), _AskedEnumeration(first_dim, in_plates)(guide)


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
        asks = self.first_available_dim is not None and asks_for_all_values(msg)
        if asks:
            check_enumerable(msg)
            _check_unmasked(msg)
            note_plates(msg, self._in_plates)
            msg["infer"] = {**own, "enumerate": "parallel"}
            if "_markov_scope" not in own:
                # Pyro would give it a dim of a pyro.markov before it, and then take that chain's values for its own.
                _ENUM_ALLOCATOR.next_available_dim = min(_ENUM_ALLOCATOR.next_available_dim, self._next_dim)
        elif "enumerate" in own:
            msg["infer"] = {name: option for name, option in own.items() if name != "enumerate"}
        super()._pyro_sample(msg)
        if asks and _PYROS_DIM not in msg["infer"]:
            raise EnumerationError(
                "its value is given by an effect handler, so that it cannot have all its values",
                site=msg["name"],
                source=current_line(),
                remedy="leave the handler out, or the estimator",
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


class AsksForAllValuesError(Exception):
    """A site asks for all its values in a run in which none has them."""


class NoticedEnumeration(Messenger):
    """Ends a run in which a site asks for all its values, before it is sampled."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin) and not msg["done"] and asks_for_all_values(msg):
            raise AsksForAllValuesError
