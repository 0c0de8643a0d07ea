"""The objectives under which a program is run, and what each side takes for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro.infer
from pyro.infer import config_enumerate

import sgc
import sgc.infer

Options = dict[str, Any]


@dataclass(frozen=True)
class ObjectiveChoice:
    """Both sides' classes, what :func:`sgc.compile` takes, further options, whether discrete sites are enumerated."""

    theirs: Callable[..., Any]
    ours: Callable[..., Any]
    keywords: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    enumerates: bool = False
    fewest_particles: int = 1

    def every_option(self, options: Options) -> Options:
        """The options of a program, with those of the objective; some classes have two particles by default."""
        return {"num_particles": self.fewest_particles, **options, **self.options}

    def program(self, part: Any) -> Any:
        """A model or guide as it is run."""
        return config_enumerate(part) if self.enumerates else part


OBJECTIVES: dict[str, ObjectiveChoice] = {
    "elbo": ObjectiveChoice(pyro.infer.TraceGraph_ELBO, sgc.infer.TraceGraph_ELBO, {}),
    "Trace_ELBO": ObjectiveChoice(pyro.infer.Trace_ELBO, sgc.infer.Trace_ELBO, {"objective": "Trace_ELBO"}),
    "TraceEnum_ELBO": ObjectiveChoice(
        partial(pyro.infer.TraceEnum_ELBO, strict_enumeration_warning=False),
        partial(sgc.infer.TraceEnum_ELBO, strict_enumeration_warning=False),
        {"objective": "TraceEnum_ELBO"},
        {"max_plate_nesting": 3},  # so that Pyro draws nothing to find it
        enumerates=True,
    ),
    "TraceMeanField_ELBO": ObjectiveChoice(
        pyro.infer.TraceMeanField_ELBO, sgc.infer.TraceMeanField_ELBO, {"objective": "TraceMeanField_ELBO"}
    ),
    "RenyiELBO": ObjectiveChoice(
        partial(pyro.infer.RenyiELBO, 0.5),
        partial(sgc.infer.RenyiELBO, 0.5),
        {"objective": sgc.Renyi(alpha=0.5)},
        fewest_particles=2,
    ),
}
