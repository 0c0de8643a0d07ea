"""What is compared. A system computes the loss and leaves the gradients in ``parameter.grad``, as a training step does.

``prepare`` makes everything ready, the first step included; ``step`` is what is timed. No system updates parameters, so
that all of them stay at the same place and do the same arithmetic.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import pyro
from pyro.infer import JitTraceGraph_ELBO, TraceGraph_ELBO
from torch import Tensor

import sgc
from benchmarks.workloads import Workload
from sgc.config import Backend


class System(ABC):
    """One way to get the loss and the gradients of a workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.parameters: list[Tensor] = []

    @abstractmethod
    def prepare(self) -> None:
        """Capture, compile, and take the first step."""

    @abstractmethod
    def step(self) -> float | Tensor:
        """The loss; the gradients are in the parameters."""

    def clear_gradients(self) -> None:
        """What ``optimizer.zero_grad()`` does."""
        for parameter in self.parameters:
            parameter.grad = None


class Sgc(System):
    """The compiled loss module."""

    backend: Backend

    def prepare(self) -> None:
        self.loss_module = sgc.compile(self.workload.model, self.workload.guide, backend=self.backend)
        self.parameters = list(self.loss_module.initialize(*self.workload.args).parameters())
        self.step()

    def step(self) -> Tensor:
        self.clear_gradients()
        loss: Tensor = self.loss_module(*self.workload.args)
        loss.backward()
        return loss.detach()


class SgcInductor(Sgc):
    """Compiled by Inductor, the default."""

    backend = "inductor"


class SgcEager(Sgc):
    """The emitted graph as it is."""

    backend = "eager"


class Pyro(System):
    """``TraceGraph_ELBO`` as ``SVI.step`` uses it, less the optimizer."""

    def prepare(self) -> None:
        pyro.enable_validation(True)
        self.elbo = self.make_elbo()
        self.step()
        store = pyro.get_param_store()
        self.parameters = [tensor for _, tensor in store.named_parameters() if tensor.grad is not None]

    def make_elbo(self) -> TraceGraph_ELBO:
        """Pyro's loss."""
        return TraceGraph_ELBO()

    def step(self) -> float:
        self.clear_gradients()
        loss: float = self.elbo.loss_and_grads(self.workload.model, self.workload.guide, *self.workload.args)
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
        return JitTraceGraph_ELBO(ignore_jit_warnings=True)


SYSTEMS: dict[str, type[System]] = {
    "sgc, inductor": SgcInductor,
    "sgc, eager": SgcEager,
    "Pyro": Pyro,
    "Pyro, no validation": PyroUnvalidated,
    "Pyro Jit": PyroJit,
}
REFERENCE = "Pyro"
