"""The fx side of the capture, and the one place that touches torch's private tracing API.

``make_fx`` is public, but a capture must also know, while it runs, which fx node a tensor stands for: to
mark a sample's value, to take back a sampler that cannot be traced, to find what a Python branch depends on.
Torch has no public call for that; the names used here are the same in torch 2.11 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import (
    PythonKeyTracer,
    _ProxyTensor,
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    make_fx,
    set_proxy_slot,
)

from sgc.graph.meta_keys import SITE


def trace(function: Callable[..., Any], inputs: list[Tensor], *, pre_dispatch: bool) -> fx.GraphModule:
    """Trace ``function(*inputs)`` on fake tensors.

    With ``pre_dispatch`` the graph stays above autograd, so that it can be differentiated; without, the
    graph holds what autograd did. Real tensors that the function merely closes over become ``get_attr``
    nodes holding those very tensors.
    """
    before, _THREAD["tracing"] = _THREAD["tracing"], get_ident()
    try:
        return make_fx(
            function,
            tracing_mode="fake",
            pre_dispatch=pre_dispatch,
            _allow_non_fake_inputs=True,
        )(*inputs)
    finally:
        _THREAD["tracing"] = before


_THREAD: dict[str, int | None] = {"tracing": None}
"""The thread that traces: torch's mode for traces above autograd is on for all threads, and records only one."""


def current_tracer() -> PythonKeyTracer:
    """The tracer of the capture in progress."""
    mode = get_proxy_mode()
    if mode is None:
        raise RuntimeError("no capture is in progress")
    tracer = mode.tracer
    assert isinstance(tracer, PythonKeyTracer)
    return tracer


def is_capturing() -> bool:
    """Whether what this thread computes now is recorded."""
    return _THREAD["tracing"] == get_ident() and get_proxy_mode() is not None


def is_fake(tensor: Tensor) -> bool:
    """Whether the tensor has no data (it stands for a value known at run time only)."""
    return isinstance(tensor, FakeTensor)


class Traced:
    """The base of what stands for a Python value in a capture, and knows that ``value``."""

    value: Any

    def read(self) -> Any:
        """The value, as one on which the structure of the program relies."""
        raise NotImplementedError


def is_traced(value: object) -> bool:
    """Whether a value is a tensor or number of a capture, or of a trace of a captured graph."""
    return isinstance(value, (FakeTensor, FunctionalTensor, Traced))


def literal_of(tensor: Tensor) -> Tensor | None:
    """The data of a traced tensor made from Python numbers or an array; None for any other tensor."""
    slot = get_proxy_slot(tensor, current_tracer(), None) if is_capturing() else None
    node: Any = slot.proxy.node if slot is not None else None
    while node is not None and node.target in (torch.ops.aten.detach.default, torch.ops.aten.detach_.default):
        node = node.args[0]
    if node is None or node.target is not torch.ops.aten.lift_fresh_copy.default or node.args[0].op != "get_attr":
        return None
    return getattr(current_tracer().root, node.args[0].target, None)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether a traced tensor is an argument of the program."""
    return node_of(tensor).op == "placeholder"


def node_of(tensor: Tensor) -> fx.Node:
    """The fx node that the tensor stands for; a tensor met for the first time becomes a ``get_attr`` node."""
    tracer = current_tracer()
    slot = get_proxy_slot(tensor, tracer, None)
    if slot is not None:
        return slot.proxy.node
    return tracer.create_arg(tensor)


def mark(tensor: Tensor, hint: str) -> tuple[Tensor, fx.Node]:
    """Give a tensor an fx node of its own, an ``alias`` of what it stood for; return the tensor and that node.

    The object stays the same wherever possible: the caches of Pyro's transforms compare by identity.
    """
    tracer = current_tracer()
    slot = get_proxy_slot(tensor, tracer, None)
    origin = slot.proxy.node if slot is not None else None
    if (
        slot is None
        or origin is None
        or origin.op != "call_function"
        or SITE.of(origin) is not None
        or not is_fake(tensor)
    ):
        tensor = torch.ops.aten.alias.default(tensor)
        node = node_of(tensor)
    else:
        proxy = tracer.create_proxy(
            "call_function", torch.ops.aten.alias.default, (slot.proxy,), {}, name=_identifier(hint)
        )
        proxy.node.meta["val"] = tensor
        set_proxy_slot(tensor, tracer, _ProxyTensor(proxy, None))
        node = proxy.node
    SITE.put(node, hint)
    return tensor, node


def bind(tensor: Tensor, node: fx.Node) -> None:
    """Make a fake tensor stand for ``node``."""
    tracer = current_tracer()
    node.meta.setdefault("val", tensor)
    set_proxy_slot(tensor, tracer, _ProxyTensor(fx.Proxy(node, tracer), None))


def bindings(tensors: list[Tensor]) -> list[tuple[Tensor, Any]]:
    """What each tensor stands for; None if the program has not used it yet."""
    tracer = current_tracer()
    return [(tensor, get_proxy_slot(tensor, tracer, None)) for tensor in tensors]


def rebind(saved: list[tuple[Tensor, Any]]) -> None:
    """Restore what :func:`bindings` returned."""
    tracer = current_tracer()
    for tensor, slot in saved:
        if slot is not None:
            set_proxy_slot(tensor, tracer, slot)
        else:
            tracer.tensor_tracker.pop(tensor, None)


@contextmanager
def untraced() -> Iterator[None]:
    """Compute on fake tensors without recording anything."""
    with disable_proxy_modes_tracing():
        yield


@contextmanager
def concrete() -> Iterator[None]:
    """Compute on real tensors in the middle of a capture, recording nothing."""
    with disable_proxy_modes_tracing(), unset_fake_temporarily():
        yield


def unwrapped(value: Any) -> Any:
    """A traced value without the wrappers that ``torch.func.grad`` and ``vmap`` put around tensors."""
    if isinstance(value, (list, tuple)):
        return type(value)(unwrapped(part) for part in value)
    while isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value


def last_node() -> fx.Node | None:
    """The newest node of the graph under construction; None if it is empty."""
    return next(iter(reversed(current_tracer().graph.nodes)), None)


def erase_after(node: fx.Node | None) -> None:
    """Erase every node recorded after ``node``; all nodes if it is None."""
    graph = current_tracer().graph
    for later in reversed(list(graph.nodes)):
        if later is node:
            return
        graph.erase_node(later)


def is_erased(node: fx.Node) -> bool:
    """Whether a node was erased."""
    return bool(node._erased)


def _identifier(hint: str) -> str:
    text = "".join(char if char.isalnum() else "_" for char in hint)
    return text if text and not text[0].isdigit() else f"site_{text}"
