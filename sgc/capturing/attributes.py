"""What a program assigns to the modules it runs, while it is captured.

``self.running = 0.9 * self.running + ...`` rebinds a buffer at each call of eager Pyro. A capture turns that into
a write to the buffer. Any other tensor that is assigned to an attribute would stay what it was at the capture;
the attribute is put back, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sgc.capturing import tracer
from sgc.capturing.source import warn
from sgc.errors import SideEffectWarning


@contextmanager
def rebound_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside a capture: record a write for each buffer that was rebound to a traced tensor."""
    before = [(module, dict(module._buffers)) for root in modules for module in root.modules()]
    yield
    for module, buffers in before:
        for name, buffer in buffers.items():
            now = module._buffers.get(name)
            if buffer is not None and now is not buffer and isinstance(now, Tensor) and tracer.is_fake(now):
                if tracer.node_of(now) is not tracer.node_of(buffer):
                    with torch.no_grad():
                        buffer.copy_(now)


@contextmanager
def preserved_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Around a capture: leave no traced tensor behind in a module."""
    before = [
        (module, holder, dict(holder))
        for root in modules
        for module in root.modules()
        for holder in (module.__dict__, module._buffers, module._parameters)
    ]
    try:
        yield
    finally:
        for module, holder, values in before:
            for name, value in list(holder.items()):
                if value is values.get(name) or not isinstance(value, Tensor) or not tracer.is_fake(value):
                    continue
                if name in values:
                    holder[name] = values[name]
                else:
                    del holder[name]
                if holder is module.__dict__ and not _is_library(type(module)):
                    warn(
                        f"the program assigns a tensor to {type(module).__name__}.{name}; a compiled program does not. "
                        "Register it as a buffer, or return it from the model.",
                        SideEffectWarning,
                    )


def _is_library(cls: type) -> bool:
    """Whether a class is Pyro's or torch's own, which caches tensors in attributes and does not rely on them."""
    return cls.__module__.partition(".")[0] in ("pyro", "torch")
