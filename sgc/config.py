"""The options of :func:`sgc.compile`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sgc.errors import ArgumentError

Rng = Literal["fast", "torch"]
Dynamic = Literal["error", "eager", "speculate"]
Objective = Literal["elbo", "Trace_ELBO", "TraceEnum_ELBO", "TraceMeanField_ELBO", "RenyiELBO", "iwae"]
"""What is estimated, and how: a name of :data:`sgc.passes.pipeline.PASSES`."""

EstimatorName = Literal[
    "pathwise",
    "partially pathwise",
    "score function",
    "enumerate",
    "decaying average",
    "decaying average per datum",
    "leave-one-out",
    "auto",
]
"""What the option ``estimators`` may ask for: an estimator, a score function with a baseline, or ``"auto"``."""

AUTO: EstimatorName = "auto"
ENUMERATE: EstimatorName = "enumerate"

AVERAGE_PER_DATUM: EstimatorName = "decaying average per datum"

BASELINES: tuple[EstimatorName, ...] = ("decaying average", AVERAGE_PER_DATUM, "leave-one-out")
"""Those that are a score function with a baseline."""

Estimators = tuple[tuple[str, EstimatorName], ...]
"""The option ``estimators``: names of sites, or patterns of names, each with what is asked for there."""


def as_estimators(given: Mapping[str, EstimatorName] | Estimators | None) -> Estimators:
    """The option ``estimators`` as it is kept.

    :raises ArgumentError: if it is no mapping.
    """
    if given is None:
        return ()
    if isinstance(given, tuple):
        return given
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"estimators must map names of sites to estimators, not {given!r}",
            remedy='write estimators={"z": "leave-one-out", "*": "auto"}, say',
        )
    return tuple(given.items())


@dataclass(frozen=True)
class Renyi:
    """The objective of Pyro's ``RenyiELBO``, for :func:`sgc.compile`.

    :param alpha: the order of the divergence, a finite number other than 1; of order 0 it is the importance weighted
        bound.
    :raises sgc.errors.ArgumentError: if it is none.
    """

    alpha: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not math.isfinite(self.alpha):
            raise ArgumentError(f"alpha must be a finite number, not {self.alpha!r}")
        if self.alpha == 1:
            raise ArgumentError("alpha must not be 1", remedy='for the case alpha = 1 take objective="elbo"')


@dataclass(frozen=True)
class Options:
    """How a model and guide are compiled; see :func:`sgc.compile` for the meaning of each field."""

    num_particles: int = 1
    vectorize_particles: bool = False
    max_plate_nesting: float = math.inf
    backend: str = "inductor"
    rng: Rng = "fast"
    cache_size: int = 16
    validate: bool | None = None
    speculate: bool = False
    wait: bool | None = None
    objective: Objective = "elbo"
    strict_enumeration_warning: bool = True
    alpha: float = 0.0
    analytic_kl: bool = False
    estimators: Estimators = ()
    measured: tuple[tuple[str, EstimatorName | None], ...] = ()
    """What was chosen at sites that ask for ``"auto"``; None: nothing is to be chosen there."""

    def __post_init__(self) -> None:
        if not isinstance(self.num_particles, int) or self.num_particles < 1:
            raise ArgumentError(f"num_particles must be a positive integer, not {self.num_particles!r}")
        if self.max_plate_nesting != math.inf and (
            not isinstance(self.max_plate_nesting, int) or self.max_plate_nesting < 0
        ):
            raise ArgumentError(
                f"max_plate_nesting must be a non-negative integer or inf, not {self.max_plate_nesting!r}"
            )
        if self.objective not in get_args(Objective):
            raise ArgumentError(f"objective must be one of {get_args(Objective)}, not {self.objective!r}")
        if self.analytic_kl not in (True, False):
            raise ArgumentError(f"analytic_kl must be True or False, not {self.analytic_kl!r}")
        if self.analytic_kl and self.objective != "elbo":
            raise ArgumentError(
                f'analytic_kl=True is an option of objective="elbo", and this is {self.objective!r}',
                remedy="leave it out; TraceMeanField_ELBO has closed forms anyway",
            )
        if self.analytic_kl and self.speculate:
            raise ArgumentError(
                "analytic_kl=True cannot be speculated with: where a branch goes another way, Pyro makes the call"
            )
        if self.objective == "iwae" and self.num_particles < 2:
            raise ArgumentError(
                'objective="iwae" is of several particles, and with one it is the ELBO',
                remedy="pass num_particles=2 or more, or leave the objective out",
            )
        if self.rng not in get_args(Rng):
            raise ArgumentError(f"rng must be one of {get_args(Rng)}, not {self.rng!r}")
        if self.validate not in (None, True, False):
            raise ArgumentError(f"validate must be True, False or None, not {self.validate!r}")
        if self.wait not in (None, True, False):
            raise ArgumentError(f"wait must be True, False or None, not {self.wait!r}")
        if self.speculate and self.rng != "torch":
            raise ArgumentError('what is speculated needs rng="torch": where it fails, Pyro takes the same numbers')
        self._check_estimators()
        if self.cache_size < 1:
            raise ArgumentError(f"cache_size must be at least 1, not {self.cache_size!r}")

    def _check_estimators(self) -> None:
        for site, name in self.estimators:
            if not isinstance(site, str):
                raise ArgumentError(f"estimators has {site!r} in the place of a site's name")
            if name not in get_args(EstimatorName):
                raise ArgumentError(
                    f"estimators asks for {name!r} at {site!r}, which is unknown",
                    remedy=f"the names are {', '.join(map(repr, get_args(EstimatorName)))}; "
                    'a network stays at the site, in infer={"baseline": {...}}',
                )
        if self.estimators and self.objective != "elbo":
            raise ArgumentError(
                f"estimators cannot be had with the objective {self.objective}, which subtracts no baselines",
                remedy='take objective="elbo", that of TraceGraph_ELBO',
            )
