"""sgc, as it is used in three ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sgc
import sgc.infer
from benchmarks.systems.base import LEARNING_RATE, STEPS_A_RUN
from benchmarks.systems.torch_base import TorchSystem


class Loop(TorchSystem):
    """The compiled loss in a training loop: ``zero_grad``, loss, ``backward``, ``torch.optim.Adam``."""

    def prepare(self) -> None:
        model, guide = self.workload.pyro()
        particles = {name: value for name, value in self.elbo_options.items() if name != "max_plate_nesting"}
        # The compiled step is what is measured, and how long it takes to the first one.
        self.loss_module = sgc.compile(model, guide, wait=True, **particles).initialize(*self.args)
        # Fused on a GPU, as torch advises: the default one would wait there for a number of each parameter.
        fused = True if self.device != "cpu" else None
        self.optimizer = torch.optim.Adam(self.loss_module.parameters(), lr=LEARNING_RATE, fused=fused)

    def advance(self) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.loss_module(*self.args)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class SviStep(TorchSystem):
    """``svi.step``, a call for each step."""

    waits = True

    def prepare(self) -> None:
        model, guide = self.workload.pyro()
        # With one particle and but for ``wait`` this is the default of sgc.SVI.
        loss = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="fast", wait=self.waits, **self.elbo_options)
        self.svi = sgc.SVI(model, guide, _adam, loss)

    def advance(self) -> float:
        loss: float = self.svi.step(*self.args)
        return loss


class SviStepAtOnce(SviStep):
    """The same, with steps operator by operator while another process compiles: the default of ``sgc.SVI``."""

    waits = False


class SviRun(SviStep):
    """``svi.run``, a call for many steps."""

    steps_a_call = STEPS_A_RUN

    def advance(self) -> Any:
        return self.svi.run(self.steps_a_call, *self.args, progress_bar=False).losses


def _adam(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE)
