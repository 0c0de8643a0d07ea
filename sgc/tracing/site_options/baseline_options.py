"""Reads the options of ``infer={"baseline": {...}}``, Pyro's and two more, and refuses what they cannot mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from pyro.distributions.util import detach
from pyro.poutine.messenger import Messenger
from torch import Tensor

from sgc.errors import BaselineError, EstimatorError, SgcError, SourceLine
from sgc.tracing.source import current_line
from sgc.tracing.values.reads import DATA_DEPENDENT

LEAVE_ONE_OUT, PER_DATUM = "use_leave_one_out", "average_per_datum"
"""The options that are not Pyro's."""

_OPTIONS = (
    "nn_baseline",
    "nn_baseline_input",
    "use_decaying_avg_baseline",
    "baseline_beta",
    "baseline_value",
    LEAVE_ONE_OUT,
    PER_DATUM,
)
_SHAPE = "the plates of the site, without its event dims"


@dataclass(frozen=True)
class BaselineOptions:
    """The options of one site; ``given`` are the names of those that are there."""

    network: Callable[..., Any] | None
    network_input: Any
    value: Tensor | float | None
    decaying: bool
    beta: float
    leave_one_out: bool
    per_datum: bool
    given: frozenset[str]

    @property
    def kind(self) -> str | None:
        """Which option gives a value to learn, if one does."""
        return "nn_baseline" if self.network is not None else "baseline_value" if self.value is not None else None


MakeError = Callable[[str, str], BaselineError]
"""Makes the error of a site's options from the problem and the remedy."""


def errors_of(site: str, source: SourceLine | None) -> MakeError:
    """Makes the errors of one site's options; they are not raised yet."""
    return lambda problem, remedy: BaselineError(problem, site=site, source=source, remedy=remedy)


class ModelBaselines(Messenger):
    """Notes the sites of the model whose own statement has a baseline; a replay puts the guide's in its place.

    :raises EstimatorError: where the statement in the model asks for an estimator, and that in the guide for none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._asking: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        options = (msg["infer"] or {}).get("baseline", {})
        given = options.values() if isinstance(options, Mapping) else [options]
        if any(option is not None and option is not False for option in given):
            self.names.add(msg["name"])
        if (msg["infer"] or {}).get("estimator") is not None:
            self._asking.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        # A replay has put what the guide's statement asks for in the place of the model's.
        if msg["name"] in self._asking and not msg["is_observed"] and msg["infer"].get("estimator") is None:
            raise EstimatorError(
                "the model's statement asks for an estimator, which only the guide's can",
                site=msg["name"],
                source=current_line(),
                remedy='give infer={"estimator": ...} in the guide',
            )


def read_options(given: Any, error: MakeError) -> BaselineOptions:
    """The options that Pyro reads, with its defaults, ``use_leave_one_out`` and ``average_per_datum``.

    :raises BaselineError: if one is unknown, is of the wrong kind, lacks another or contradicts it.
    """
    if not isinstance(given, Mapping):
        raise error(f"the baseline is {_shown(given)}, not a dict of options", f"the options are {', '.join(_OPTIONS)}")
    unknown = sorted(str(name) for name in given if name not in _OPTIONS)
    if unknown:
        raise error(f"Unrecognized baseline options: {', '.join(unknown)}", f"the options are {', '.join(_OPTIONS)}")
    network, value = given.get("nn_baseline"), given.get("baseline_value")
    decaying = given.get("use_decaying_avg_baseline", False)
    if network is not None and value is not None:
        raise error(
            "cannot use baseline_value and nn_baseline simultaneously",
            "give one of them; use_decaying_avg_baseline may be combined with either",
        )
    if network is not None and not callable(network):
        raise error(
            f"nn_baseline is {_shown(network)}, which cannot be called",
            "give a network as nn_baseline; a tensor that was computed before is a baseline_value",
        )
    if network is not None and given.get("nn_baseline_input") is None:
        raise error("nn_baseline has no input", "give what it is called with as nn_baseline_input: the data, say")
    # With a network that is None both are switched off.
    if given.get("nn_baseline_input") is not None and "nn_baseline" not in given:
        raise error("nn_baseline_input has no network", "give the network as nn_baseline, or leave its input out")
    if not isinstance(decaying, bool):
        raise error(f"use_decaying_avg_baseline is {_shown(decaying)}, not a bool", "write True or False")
    leave_one_out = given.get(LEAVE_ONE_OUT, False)
    if not isinstance(leave_one_out, bool):
        raise error(f"{LEAVE_ONE_OUT} is {_shown(leave_one_out)}, not a bool", "write True or False")
    per_datum = given.get(PER_DATUM, False)
    if not isinstance(per_datum, bool):
        raise error(f"{PER_DATUM} is {_shown(per_datum)}, not a bool", "write True or False")
    if per_datum and not decaying:
        raise error(
            f"{PER_DATUM} says of a decaying average that it has a row for each datum, and there is no such average",
            f"add use_decaying_avg_baseline=True, or leave {PER_DATUM} out",
        )
    if value is not None:
        value = checked_value("baseline_value is", value, decaying, error)
    return BaselineOptions(
        network,
        given.get("nn_baseline_input"),
        value,
        decaying,
        _beta(given.get("baseline_beta", 0.90), error),
        leave_one_out,
        per_datum,
        frozenset(given),
    )


def value_of_network(options: BaselineOptions, failed_before: bool, error: MakeError) -> Tensor | float:
    """``nn_baseline`` of its detached input.

    :param failed_before: whether Pyro failed, too, when it combined costs and baselines.
    :raises BaselineError: if the network fails in both, or returns something else than a tensor.
    """
    assert options.network is not None
    try:
        result = options.network(detach(options.network_input))
    except (SgcError, *DATA_DEPENDENT):
        raise
    except Exception as cause:
        if not failed_before:
            raise
        text = str(cause).strip().partition("\n")[0]
        raise error(
            f"nn_baseline fails on its input: {type(cause).__name__}: {text}",
            "it is called with nn_baseline_input as its one argument, detached",
        ) from cause
    return checked_value("nn_baseline returns", result, options.decaying, error)


def checked_value(what: str, value: Any, decaying: bool, error: MakeError) -> Tensor | float:
    """A real tensor; beside a decaying average, whose shape it takes, a number is enough.

    :raises BaselineError: if it is something else.
    """
    if isinstance(value, Tensor) and not value.is_complex():
        return 0.0 + value if value.dtype is torch.bool else value  # as Pyro adds it up
    if decaying and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    kind = "a complex tensor" if isinstance(value, Tensor) else _shown(value)
    raise error(f"{what} {kind}, not a tensor of real numbers", f"give one of the shape of {_SHAPE}")


def _beta(beta: Any, error: MakeError) -> float:
    remedy = "it is the share of the past in the new average, 0.9 by default: a number from 0 to below 1"
    if isinstance(beta, Tensor):
        if beta.dim() or beta.is_complex() or beta.dtype is torch.bool:
            raise error(f"baseline_beta is a tensor of {beta.dtype}{list(beta.shape)}, not a number", remedy)
    elif isinstance(beta, bool) or not isinstance(beta, Real):
        raise error(f"baseline_beta is {_shown(beta)}, not a number", remedy)
    number = float(beta)
    if math.isnan(number) or not 0 <= number < 1:
        raise error(f"baseline_beta is {number}, which is not in [0, 1)", remedy)
    return number


def _shown(value: Any) -> str:
    """What somebody has written where something else belongs."""
    if value is None or isinstance(value, (bool, str, int, float)):
        return repr(value)
    return f"of type {type(value).__name__}"
