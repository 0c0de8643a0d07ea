"""Pyro's ELBO classes, compiled: change the import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.infer

from sgc.config import Dynamic, EstimatorName, Estimators, Objective, Renyi, Rng, as_estimators
from sgc.infer.compiled_loss import CompiledLoss


class TraceGraph_ELBO(CompiledLoss, pyro.infer.TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO``, compiled: score functions are multiplied by the costs below them, less a baseline.

    After Schulman et al. 2015. For the other options that are not Pyro's see :class:`CompiledLoss`.

    :param estimators: how the gradient passes through each site, by names or patterns (:func:`sgc.compile`).
    """

    _objective: ClassVar[Objective] = "elbo"
    _SETTINGS: ClassVar[tuple[str, ...]] = (*CompiledLoss._SETTINGS, "estimators")

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        max_iarange_nesting: int | None = None,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
        jit_options: dict[str, Any] | None = None,
        retain_graph: bool | None = None,
        tail_adaptive_beta: float = -1.0,
        *,
        backend: str | None = None,
        rng: Rng = "torch",
        dynamic: Dynamic = "error",
        validate: bool | None = None,
        wait: bool | None = None,
        estimators: Mapping[str, EstimatorName] | Estimators | None = None,
    ) -> None:
        self.estimators: Mapping[str, EstimatorName] | Estimators | None = as_estimators(estimators)
        super().__init__(
            num_particles,
            max_plate_nesting,
            max_iarange_nesting,
            vectorize_particles,
            strict_enumeration_warning,
            ignore_jit_warnings,
            jit_options,
            retain_graph,
            tail_adaptive_beta,
            backend=backend,
            rng=rng,
            dynamic=dynamic,
            validate=validate,
            wait=wait,
        )

    def _own_options(self) -> dict[str, Any]:
        return {"estimators": as_estimators(self.estimators)}


class JitTraceGraph_ELBO(TraceGraph_ELBO):
    """:class:`TraceGraph_ELBO` under the name of Pyro's compiled variant, without the latter's restrictions.

    Keyword arguments, arguments that are no tensors, changes of shape and closed-over modules are all fine.
    TorchScript is used only with ``backend="torchscript"``; ``jit_options`` has nothing to act on.
    """


class Trace_ELBO(CompiledLoss, pyro.infer.Trace_ELBO):
    """Pyro's ``Trace_ELBO``, compiled: score functions are multiplied by all costs of the plates that they are in.

    After Ranganath et al. 2014. Where no site has a score function it is :class:`TraceGraph_ELBO`; where one has, that
    class has less variance, for it leaves out the costs that do not depend on the site's sample, and subtracts
    baselines, which this class ignores as Pyro's does. For the options that are not Pyro's see :class:`CompiledLoss`.
    """

    _objective: ClassVar[Objective] = "Trace_ELBO"


class JitTrace_ELBO(Trace_ELBO):
    """:class:`Trace_ELBO` under the name of Pyro's compiled variant, without the latter's restrictions."""


class TraceEnum_ELBO(CompiledLoss, pyro.infer.TraceEnum_ELBO):
    """Pyro's ``TraceEnum_ELBO``, compiled: discrete sites that ask for it are enumerated, in the guide or in the model.

    After Obermeyer et al. 2019. ``compute_marginals`` and ``sample_posterior`` are Pyro's own. For the options that are
    not Pyro's see :class:`CompiledLoss`.
    """

    _objective: ClassVar[Objective] = "TraceEnum_ELBO"


class JitTraceEnum_ELBO(TraceEnum_ELBO):
    """:class:`TraceEnum_ELBO` under the name of Pyro's compiled variant, without the latter's restrictions."""


class TraceMeanField_ELBO(CompiledLoss, pyro.infer.TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO``, compiled: the two densities of a site become ``-KL(q || p)`` where that has a
    closed form.

    All sites of the guide must be reparameterised (:class:`~sgc.errors.ReparameterizationError`). Where a closed form
    is not the expectation of the two densities, the numbers are Pyro's all the same, and a
    :class:`~sgc.errors.MeanFieldWarning` says why. For the options that are not Pyro's see :class:`CompiledLoss`.
    """

    _objective: ClassVar[Objective] = "TraceMeanField_ELBO"


class JitTraceMeanField_ELBO(TraceMeanField_ELBO):
    """:class:`TraceMeanField_ELBO` under the name of Pyro's compiled variant, without the latter's restrictions."""


class RenyiELBO(CompiledLoss, pyro.infer.RenyiELBO):
    """Pyro's ``RenyiELBO``, compiled: Rényi's bound of order ``alpha``, of all particles together.

    After Li and Turner 2016; of order 0 it is the importance weighted bound of Burda et al. 2016. All particles are in
    one program, up to 64 of them where they are not vectorised. For the options that are not Pyro's see
    :class:`CompiledLoss`.

    :raises ValueError: if ``alpha`` is 1.
    """

    _objective: ClassVar[Objective] = "RenyiELBO"
    _SETTINGS: ClassVar[tuple[str, ...]] = (*CompiledLoss._SETTINGS, "alpha")

    def __init__(
        self,
        alpha: float = 0,
        num_particles: int = 2,
        max_plate_nesting: float = math.inf,
        max_iarange_nesting: int | None = None,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        *,
        backend: str | None = None,
        rng: Rng = "torch",
        dynamic: Dynamic = "error",
        validate: bool | None = None,
        wait: bool | None = None,
    ) -> None:
        super(CompiledLoss, self).__init__(  # Pyro's own, which takes other arguments than its other classes
            alpha,
            num_particles,
            max_plate_nesting,
            max_iarange_nesting,
            vectorize_particles,
            strict_enumeration_warning,
        )
        self._set_options(backend, rng, dynamic, validate, wait)

    def _own_options(self) -> dict[str, Any]:
        return {"alpha": Renyi(self.alpha).alpha}


class ImportanceWeightedELBO(RenyiELBO):
    """The importance weighted bound of Burda et al. 2016, compiled; not one of Pyro's classes.

    Its loss is that of :class:`RenyiELBO` of order 0. At sites with a score function its gradient is that of Mnih and
    Rezende 2016 (VIMCO): the score times what the particle adds to the bound, which is unbiased for the gradient of the
    expected bound. It is ``sgc.compile(..., objective="iwae")``. For the other options see :class:`CompiledLoss`.

    :raises sgc.errors.ArgumentError: if there are fewer than two particles.
    """

    _objective: ClassVar[Objective] = "iwae"
    _SETTINGS: ClassVar[tuple[str, ...]] = CompiledLoss._SETTINGS

    def __init__(
        self,
        num_particles: int = 2,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
        *,
        backend: str | None = None,
        rng: Rng = "torch",
        dynamic: Dynamic = "error",
        validate: bool | None = None,
        wait: bool | None = None,
    ) -> None:
        super().__init__(
            0,
            num_particles,
            max_plate_nesting,
            None,
            vectorize_particles,
            backend=backend,
            rng=rng,
            dynamic=dynamic,
            validate=validate,
            wait=wait,
        )

    def _own_options(self) -> dict[str, Any]:
        return {}
