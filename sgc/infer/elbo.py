"""Pyro's ELBO classes, compiled: change the import."""

from __future__ import annotations

from typing import ClassVar

import pyro.infer

from sgc.config import Objective
from sgc.infer.compiled_loss import CompiledLoss


class TraceGraph_ELBO(CompiledLoss, pyro.infer.TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO``, compiled: score functions are multiplied by the costs below them, less a baseline.

    After Schulman et al. 2015. For the options that are not Pyro's see :class:`CompiledLoss`.
    """

    objective: ClassVar[Objective] = "elbo"


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

    objective: ClassVar[Objective] = "Trace_ELBO"


class JitTrace_ELBO(Trace_ELBO):
    """:class:`Trace_ELBO` under the name of Pyro's compiled variant, without the latter's restrictions."""


class TraceEnum_ELBO(CompiledLoss, pyro.infer.TraceEnum_ELBO):
    """Pyro's ``TraceEnum_ELBO``, compiled: discrete sites that ask for it are enumerated, in the guide or in the model.

    After Obermeyer et al. 2019. ``compute_marginals`` and ``sample_posterior`` are Pyro's own. For the options that are
    not Pyro's see :class:`CompiledLoss`.
    """

    objective: ClassVar[Objective] = "TraceEnum_ELBO"


class JitTraceEnum_ELBO(TraceEnum_ELBO):
    """:class:`TraceEnum_ELBO` under the name of Pyro's compiled variant, without the latter's restrictions."""
