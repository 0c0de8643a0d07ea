"""The options of :func:`sgc.compile`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sgc.errors import ArgumentError

Rng = Literal["fast", "torch"]
Dynamic = Literal["error", "eager", "speculate"]
Objective = Literal["elbo", "Trace_ELBO", "TraceEnum_ELBO", "TraceMeanField_ELBO", "RenyiELBO", "iwae"]
"""What is estimated, and how: a name of :data:`sgc.passes.pipeline.PASSES`."""


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
        if self.cache_size < 1:
            raise ArgumentError(f"cache_size must be at least 1, not {self.cache_size!r}")
