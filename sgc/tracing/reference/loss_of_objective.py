"""Makes eager Pyro's loss for the options of a compiled one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro

from sgc.config import Objective, Options
from sgc.graph.program import PARTICLE_PLATE
from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.reference.pyro_mean_field import PyroMeanField
from sgc.tracing.reference.pyro_renyi import PyroImportanceWeighted, PyroRenyi
from sgc.tracing.reference.pyro_trace import PyroTrace
from sgc.tracing.reference.pyro_trace_enum import PyroTraceEnum
from sgc.tracing.reference.pyro_trace_graph import PyroTraceGraph
from sgc.tracing.site_options.estimator_option import EstimatorOption

PYRO_LOSSES: dict[Objective, type[PyroLoss]] = {
    "elbo": PyroTraceGraph,
    "Trace_ELBO": PyroTrace,
    "TraceEnum_ELBO": PyroTraceEnum,
    "TraceMeanField_ELBO": PyroMeanField,
    "RenyiELBO": PyroRenyi,
    "iwae": PyroImportanceWeighted,
}
"""Pyro's class of each objective."""


def pyro_elbo(
    options: Options, max_plate_nesting: float | None = None, make: Callable[..., PyroLoss] | None = None
) -> PyroLoss:
    """Pyro's own loss for the same options.

    :param make: makes it, of Pyro's own options; by default Pyro's class of the objective does.
    """
    own: dict[str, Any] = {"alpha": options.alpha} if options.objective == "RenyiELBO" else {}
    elbo = (make or PYRO_LOSSES[options.objective])(
        num_particles=options.num_particles,
        vectorize_particles=options.vectorize_particles,
        max_plate_nesting=options.max_plate_nesting,
        strict_enumeration_warning=options.strict_enumeration_warning,
        **own,
        option=EstimatorOption.of(options),
    )
    if max_plate_nesting is not None:
        elbo.max_plate_nesting = max_plate_nesting
    return elbo


def pyro_elbo_of_a_run(options: Options, max_plate_nesting: float | None = None) -> PyroLoss:
    """Pyro's loss of one run of the program: all particles if they are vectorised, else one."""
    elbo = pyro_elbo(options, max_plate_nesting)
    elbo.num_particles = options.num_particles if options.vectorize_particles else 1
    return elbo


def in_a_plate_of_particles(
    program: Callable[..., Any], options: Options, max_plate_nesting: float
) -> Callable[..., Any]:
    """The model or guide as Pyro runs it: in an outermost plate of all particles, where these are vectorised.

    :param max_plate_nesting: that plate counted.
    """
    if not options.vectorize_particles or options.num_particles == 1:
        return program
    inside: Callable[..., Any] = pyro.plate(PARTICLE_PLATE, options.num_particles, dim=-int(max_plate_nesting))(program)
    return inside
