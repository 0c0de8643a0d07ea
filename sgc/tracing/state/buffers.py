"""Buffers that a program rebinds while it is captured.

``self.running = 0.9 * self.running + ...`` rebinds a buffer at each call of eager Pyro. A capture turns that into
a write to the buffer. Any other tensor that is kept is put back after the capture
(:mod:`sgc.runtime.residue.leaked_tensors`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sgc.errors import CaptureError
from sgc.graph.effects import storages, written_arguments, written_storages
from sgc.tracing import tracer


@contextmanager
def rebound_buffers(modules: Sequence[nn.Module], filled: Mapping[tuple[int, str], nn.Module]) -> Iterator[None]:
    """Record a write for each buffer that is rebound to another tensor inside.

    :param filled: buffers that held None before the program ran for the first time, by the identities of their modules
        and their names.
    :raises CaptureError: where a write would not be the same.
    """
    before = [(module, dict(module._buffers)) for root in modules for module in root.modules()]
    yield
    rebound: list[tuple[Tensor, Tensor]] = []
    for module, buffers in before:
        for name, buffer in buffers.items():
            now = module._buffers.get(name)
            if now is buffer:
                continue
            shown = f"{type(module).__name__}.{name}"
            if (id(module), name) in filled or buffer is None or now is None:
                raise CaptureError(f"the program rebinds the buffer {shown}, which holds None at times", remedy=_REMEDY)
            if not _stands_for(now, buffer):
                _check_alike(shown, buffer, now)
                rebound.append((buffer, now))
    _check_apart(before)
    _check_unwritten([module._buffers.get(name) for (_, name), module in filled.items()])
    with torch.no_grad():
        # All values are taken before the first is written, since they may be those of other buffers.
        values = [now.clone() for _, now in rebound]
        for (buffer, _), value in zip(rebound, values, strict=True):
            buffer.copy_(value)


def _stands_for(now: Tensor, buffer: Tensor) -> bool:
    """Whether a traced tensor stands for the buffer itself."""
    return tracer.is_fake(now) and tracer.node_of(now) is tracer.node_of(buffer)


def _check_alike(shown: str, buffer: Tensor, now: Tensor) -> None:
    """Refuse a change of shape, dtype or device, which a write cannot make."""
    for what in ("shape", "dtype", "device"):
        if getattr(now, what) != getattr(buffer, what):
            raise CaptureError(
                f"the program gives the buffer {shown} another {what}: it was {_shown(getattr(buffer, what))}, is "
                f"{_shown(getattr(now, what))}",
                remedy=f"register it with the {what} that it is to have, or convert what is assigned",
            )


def _check_apart(before: Iterable[tuple[nn.Module, dict[str, Tensor | None]]]) -> None:
    """Refuse two buffers that become one tensor: a write into one would change both."""
    by_storage: dict[int, tuple[str, bool]] = {}
    for module, buffers in before:
        for name, buffer in buffers.items():
            now = module._buffers.get(name)
            if now is None or now.layout is not torch.strided:
                continue
            shown, is_rebound = f"{type(module).__name__}.{name}", now is not buffer
            other, other_is = by_storage.setdefault(now.untyped_storage()._cdata, (shown, is_rebound))
            if other != shown and (is_rebound or other_is):
                raise CaptureError(
                    f"the program makes one tensor of the buffers {other} and {shown}",
                    remedy="assign a copy: self.previous = self.present.clone()",
                )


def _check_unwritten(filled: Iterable[Tensor | None]) -> None:
    """Refuse writes into buffers that held None before the first run: they could not be undone."""
    kept = {id(tensor) for tensor in filled if tensor is not None}
    if not kept:
        return
    graph, root = tracer.current_tracer().graph, tracer.current_tracer().root
    held = [node for node in graph.nodes if node.op == "get_attr" and id(getattr(root, str(node.target))) in kept]
    written = written_storages(graph.nodes)
    if any(node in written_arguments(other) for node in held for other in node.users) or any(
        not written.isdisjoint(storages(node)) for node in held
    ):
        raise CaptureError("the program writes into a buffer that held None before its first run", remedy=_REMEDY)


_REMEDY = (
    "register it with a tensor of its shape, and write its first value where the others are written "
    "(torch.where on a count, say)"
)


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)


@contextmanager
def preserved_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Remove traced tensors from the parameters and buffers of modules afterwards."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (holder, dict(holder))
        for root in modules
        for module in root.modules()
        for holder in (module._buffers, module._parameters)
    ]
    try:
        yield
    finally:
        for holder, values in before:
            for name, value in list(holder.items()):
                if value is values.get(name) or not isinstance(value, Tensor) or not tracer.is_fake(value):
                    continue
                if name in values:
                    holder[name] = values[name]
                else:
                    del holder[name]
