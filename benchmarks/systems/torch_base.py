"""What the systems on torch share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.systems.base import System
from benchmarks.workloads.base import Workload


class TorchSystem(System):
    """A system whose data and losses are torch tensors, or floats."""

    def __init__(self, workload: Workload, particles: int = 1, device: str = "cpu") -> None:
        super().__init__(workload, particles, device)
        if device != "cpu":
            torch.set_default_device(device)  # models and guides make tensors of their own
        self.args = tuple(torch.tensor(array) for array in workload.data)

    def wait(self, result: Any) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def numbers(self, result: Any) -> Any:
        return result.detach().cpu().numpy() if isinstance(result, Tensor) else result

    def device_peak(self) -> int | None:
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated()

    @property
    def elbo_options(self) -> dict[str, Any]:
        """For a TraceGraph_ELBO, Pyro's or sgc's."""
        if self.particles == 1:
            return {}
        return {"num_particles": self.particles, "vectorize_particles": True, "max_plate_nesting": 1}
