"""A number that a device is still computing, read later than it was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AsyncNumber:
    """A copy of a 0-d tensor, which is on its way to the CPU.

    Reading a tensor of a GPU waits for all that was sent to the GPU before. A copy that is sent right behind the
    tensor's own computation, with an event behind it, is there when that computation is done, whatever was sent since.

    :param tensor: a 0-d tensor of an accelerator.
    """

    def __init__(self, tensor: Tensor) -> None:
        device_module: Any = torch.get_device_module(tensor.device)
        self._event: Any = None
        self._number = tensor.detach()
        if hasattr(device_module, "Event") and hasattr(device_module, "current_stream"):
            self._number = self._number.to("cpu", non_blocking=True)
            self._event = device_module.Event()
            self._event.record(device_module.current_stream(tensor.device))

    def __float__(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._number)

    def __reduce__(self) -> Any:
        return float, (float(self),)  # an event cannot be copied
