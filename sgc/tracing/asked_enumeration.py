"""Gives a site of the guide all its values at once, where it asks for that by ``infer={"estimator": "enumerate"}``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger

from sgc.config import ENUMERATE
from sgc.errors import EnumerationError
from sgc.tracing.reference.enumerable_sites import check_enumerable, note_plates
from sgc.tracing.source import current_line

Program = Callable[..., Any]


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

    def _pyro_sample(self, msg: Any) -> None:
        own = msg["infer"] or {}
        asks = self.first_available_dim is not None and asks_for_all_values(msg)
        if asks:
            check_enumerable(msg)
            note_plates(msg, self._in_plates)
            msg["infer"] = {**own, "enumerate": "parallel"}
        elif "enumerate" in own:
            msg["infer"] = {name: option for name, option in own.items() if name != "enumerate"}
        super()._pyro_sample(msg)
        if asks and "_enumerate_dim" not in msg["infer"]:
            raise EnumerationError(
                "its value is given by an effect handler, so that it cannot have all its values",
                site=msg["name"],
                source=current_line(),
                remedy="leave the handler out, or the estimator",
            )
        msg["infer"].pop("enumerate", None)  # else Pyro warns that it takes another class
        if "enumerate" in own and not asks:
            msg["infer"]["enumerate"] = own["enumerate"]


class AsksForAllValuesError(Exception):
    """A site asks for all its values in a run in which none has them."""


class NoticedEnumeration(Messenger):
    """Ends a run in which a site asks for all its values, before it is sampled."""

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin) and not msg["done"] and asks_for_all_values(msg):
            raise AsksForAllValuesError
