"""Derives, from the loss-and-surrogate module, the module that computes loss and gradients in one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.fx.recorded_operators import record
from sgc.emit.fx.rewriting import attribute, mark_literal, results_of, value_of
from sgc.emit.rewrites.singular_matrices import failures_are_nan
from sgc.graph.effects import drop_dead, storages, written_storages


@dataclass(frozen=True)
class Differentiated:
    """``module(*tensors)`` returns ``(loss, *gradients)``; ``gradient_of`` says for which inputs, in order.

    If it ``validates``, one more result says, as a 0-d bool tensor, whether all of the program's checks hold.

    An input that needs a gradient and is not in ``gradient_of`` has none: Pyro would leave its ``.grad`` None.
    """

    module: fx.GraphModule
    gradient_of: tuple[int, ...]
    validates: bool = False

    @cached_property
    def device(self) -> torch.device:
        """Where the loss is: an input may be elsewhere, on the CPU for the program to move."""
        return value_of(results_of(self.module)[0]).device


def differentiate(module: fx.GraphModule, tensors: list[Tensor], wanted: list[int]) -> Differentiated:
    """Trace the gradient of the surrogate in the inputs at the positions ``wanted``.

    :param module: returns ``(loss, surrogate_loss)``, and ``valid`` if the program has checks.
    :param tensors: examples of the inputs; their values are not used.
    """
    differentiable: list[int] = []
    checked: list[Tensor] = []

    def step(*inputs: Tensor) -> list[Tensor]:
        leaves = list(inputs)
        for position in wanted:
            leaves[position] = leaves[position].detach().requires_grad_()
        with torch.enable_grad():
            loss, surrogate, *checked[:] = module(*leaves)
            gradients: Any = [None] * len(wanted)
            if surrogate.requires_grad:
                gradients = torch.autograd.grad(surrogate, [leaves[i] for i in wanted], allow_unused=True)
        differentiable[:] = [i for i, gradient in zip(wanted, gradients, strict=True) if gradient is not None]
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None), *checked]

    with _recurrent_cells_in_torch(module):
        traced = trace(step, tensors)
    if checked:
        failures_are_nan(traced, validates=True)
    return Differentiated(traced, tuple(differentiable), bool(checked))


def without_gradient(module: fx.GraphModule, tensors: list[Tensor]) -> Differentiated:
    """The module that computes ``(loss,)`` alone, and ``valid`` if the program has checks."""
    results: list[Tensor] = []

    def step(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            results[:] = module(*inputs)
        return results

    with _recurrent_cells_in_torch(module):
        traced = trace(step, tensors)
    validates = len(results) > 1
    if validates:
        failures_are_nan(traced, validates=True)
    return Differentiated(traced, (), validates)


def operators_of(module: fx.GraphModule, tensors: list[Tensor]) -> fx.GraphModule:
    """What a module computes, without a gradient, as operators: a module of the same results, a tuple or one tensor.

    :param tensors: examples of the inputs; their values are not used.
    """

    def results(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            given = module(*inputs)
        return [given] if isinstance(given, Tensor) else list(given)

    with _recurrent_cells_in_torch(module):
        return trace(results, tensors)


@contextmanager
def _recurrent_cells_in_torch(module: fx.GraphModule) -> Iterator[None]:
    """Trace GRUs and LSTMs as torch's own cells.

    cuDNN's lay out the weights anew, which cannot be traced. oneDNN's LSTM, on a CPU, asks in its backward for memory
    that a traced forward does not have.
    """
    if not any(getattr(node.target, "overloadpacket", None) in _RECURRENT for node in module.graph.nodes):
        yield
        return
    onednn: Any = torch.backends.mkldnn
    with torch.backends.cudnn.flags(enabled=False), onednn.flags(enabled=False, allow_tf32=onednn.allow_tf32):
        yield


_RECURRENT = {getattr(torch.ops.aten, name) for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")}


def trace(step: Callable[..., Any], tensors: list[Tensor]) -> fx.GraphModule:
    """The aten operators of ``step(*tensors)``, on fake tensors, with its literals marked as such.

    :param tensors: examples of the inputs; their values are not used.
    """
    examples = [tensor.detach() for tensor in tensors]
    # Autograd runs an accelerator's backward in a thread of that device, fake tensors' too; a trace stays in its own.
    with torch.autograd.set_multithreading_enabled(False):
        traced = record(step, examples)
    _tidy(traced)
    return traced


def _tidy(module: fx.GraphModule) -> None:
    """Remove what has become idle: aliases, copies of literals that nobody writes into, dead nodes."""
    graph = module.graph
    for node in graph.nodes:
        # What a program copies before its first use is a literal of its own; nobody else holds that tensor.
        if node.target is torch.ops.aten.lift_fresh_copy.default and node.args[0].op == "get_attr":
            mark_literal(attribute(node.args[0]))
    written = written_storages(graph.nodes)
    idle = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh_copy.default)
    for node in list(graph.nodes):
        if node.target in idle and not storages(node) & written:
            origin = node.args[0]
            if node.target is torch.ops.aten.lift_fresh_copy.default or not storages(origin) & written:
                node.replace_all_uses_with(origin)
                graph.erase_node(node)
    drop_dead(graph)
    graph.lint()
    module.recompile()
