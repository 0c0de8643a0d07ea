"""Pyro as it is."""

from __future__ import annotations

import warnings

import pyro
from pyro.infer import SVI, JitTraceGraph_ELBO, TraceGraph_ELBO

from benchmarks.systems.base import LEARNING_RATE
from benchmarks.systems.torch_base import TorchSystem


class Pyro(TorchSystem):
    """``SVI.step`` with ``TraceGraph_ELBO`` and ``pyro.optim.Adam``."""

    def prepare(self) -> None:
        pyro.enable_validation(True)
        model, guide = self.workload.pyro()
        self.svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), self.make_elbo())

    def make_elbo(self) -> TraceGraph_ELBO:
        """Pyro's loss."""
        return TraceGraph_ELBO(**self.elbo_options)

    def advance(self) -> float:
        loss: float = self.svi.step(*self.args)
        return loss


class PyroUnvalidated(Pyro):
    """The same without the checks of distributions' arguments, which Pyro makes by default."""

    def prepare(self) -> None:
        super().prepare()
        pyro.enable_validation(False)


class PyroJit(Pyro):
    """``JitTraceGraph_ELBO``, which records the loss and surrogate with ``torch.jit.trace``."""

    def prepare(self) -> None:
        warnings.filterwarnings("ignore")  # the tracer warns of each constant that it finds
        super().prepare()

    def make_elbo(self) -> TraceGraph_ELBO:
        return JitTraceGraph_ELBO(ignore_jit_warnings=True, **self.elbo_options)
