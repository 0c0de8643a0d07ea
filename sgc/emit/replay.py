"""Replays a compiled step as a CUDA graph: one launch for all of its kernels, or for those of many steps.

What Inductor compiles for a GPU is Python that launches kernels, and a kernel of a small program is done before the
next one is launched. A CUDA graph launches the same kernels, on the same addresses, without Python. The random
generator of the device goes on in it as it does outside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import increment_version
from torch.utils._pytree import tree_leaves

from sgc.emit.backends import Runner
from sgc.emit.optimize.nodes import writes
from sgc.errors import StandInWarning
from sgc.graph.effects import is_random

_LASTS = 0.5
"""Milliseconds that a graph of many steps is to take, if so many steps are asked for: a hundred times its launch."""

_MOST = 64
"""The most steps in a graph."""


def why_not_replayed(module: fx.GraphModule, inputs: Iterable[Tensor]) -> str | None:
    """Why a step cannot be a CUDA graph, or None if it may be one.

    A graph repeats what was done on the GPU. What is done elsewhere is left as it was: that is right for numbers that
    depend on literals alone, and for nothing else.
    """
    elsewhere = {tensor.device.type for tensor in inputs} - {"cuda"}
    if elsewhere:
        return f"an input is on the {', '.join(sorted(elsewhere))}"
    fixed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and fixed.issuperset(node.all_input_nodes)):
            if node.op == "get_attr" or not (is_random(node) or writes(node)):
                fixed.add(node)
        if getattr(node.target, "namespace", "aten") not in ("aten", "prims"):
            return f"{node.name} runs Python"
        for value in tree_leaves(node.meta.get("val")) if node.op != "output" else ():
            if isinstance(value, Tensor) and value.device.type != "cuda" and (value.dim() or node not in fixed):
                return f"{node.name} is on the {value.device.type}"
    return None


class Replayed:
    """A compiled step with those of its inputs that stay the same tensors, as CUDA graphs.

    A graph reads what it has read when it was captured, at that address. What each call brings is read where it lies as
    long as all of them bring what lies there, and is copied to a place of its own otherwise.

    The first call runs the step as it is, because kernels are loaded when they are first used; the second is captured.

    :param run: the compiled step.
    :param inputs: its inputs; None for those that each call brings, which the step does not write.
    :param written: the positions of those that it writes, which autograd is told about.
    """

    def __init__(self, run: Runner, inputs: Sequence[Tensor | None], written: Sequence[int]) -> None:
        self._run = run
        self._inputs = list(inputs)
        self._brought = [position for position, tensor in enumerate(inputs) if tensor is None]
        self._written = [tensor for position in written if (tensor := inputs[position]) is not None]
        self._warm = self._given_up = False
        self._addresses: list[int] | None = None
        self._places: list[Tensor] | None = None
        self._graphs: dict[int, _Graph] = {}
        self._many = 0  # how many steps the larger graph has; 0 until a replay has been timed

    def __call__(self, tensors: Sequence[Tensor], steps: int) -> list[Tensor]:
        """Take at least one step and at most so many; what they give, each result a tensor of shape ``[taken]``."""
        brought = [tensors[position] for position in self._brought]
        if not self._warm or self._given_up:
            self._warm = True
            return _columns([self._run(*self._filled(brought))])
        brought = self._placed(brought)
        number = self._many if 1 < self._many <= steps and 1 in self._graphs else 1
        if number not in self._graphs:
            try:
                self._graphs[number] = _Graph(self._run, self._filled(brought), number)
            except RuntimeError as error:
                self._given_up = True
                self._graphs.clear()
                text = f"the kernels of each step are launched from Python, because there is no CUDA graph: {error}"
                warnings.warn(text, StandInWarning, stacklevel=2)
                return self(tensors, steps)
            self._graphs[number].replay()
        elif steps > 1 and not self._many:
            self._many = min(_MOST, math.ceil(_LASTS / self._graphs[number].timed()))
        else:
            self._graphs[number].replay()
        increment_version(self._written)
        return [column.clone() for column in self._graphs[number].columns]

    def _filled(self, brought: Iterable[Tensor]) -> list[Any]:
        """All inputs."""
        ahead = iter(brought)
        return [next(ahead) if tensor is None else tensor for tensor in self._inputs]

    def _placed(self, brought: list[Tensor]) -> list[Tensor]:
        """What a call brings, where the graphs read it."""
        if self._places is None:
            addresses = [tensor.data_ptr() for tensor in brought]
            if self._addresses is None:
                self._addresses = addresses
            if self._addresses == addresses:
                return brought
            self._graphs.clear()
            self._places = [_like(tensor) for tensor in brought]
        for place, tensor in zip(self._places, brought, strict=True):
            _memory(place).copy_(_memory(tensor))
        return self._places


class _Graph:
    """A CUDA graph of some steps; ``columns`` are their results, each of shape ``[steps]``, after a replay."""

    def __init__(self, run: Runner, inputs: Sequence[Tensor], steps: int) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (that of a DataLoader, say) may go on using the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.columns = _columns([run(*inputs) for _ in range(steps)])

    def replay(self) -> None:
        self._graph.replay()

    def timed(self) -> float:
        """Replay it; how long that took, in milliseconds."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        self.replay()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)


def _columns(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The results of steps, each as one tensor for all of them."""
    return [torch.cat([result.reshape(1) for result in column]) for column in zip(*rows, strict=True)]


def _memory(tensor: Tensor) -> Tensor:
    """The stretch of memory from a tensor's first element to its last, whatever its strides."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((last + 1 if tensor.numel() else 0,), (1,))


def _like(tensor: Tensor) -> Tensor:
    """Other memory, laid out as a tensor is."""
    return torch.empty_like(_memory(tensor)).as_strided(tensor.shape, tensor.stride())
