"""Replays what Inductor has compiled as a CUDA graph: one launch for all of its kernels, or for those of many steps.

What Inductor compiles for a GPU is Python that launches kernels, and a kernel of a small program is done before the
next one is launched. A CUDA graph launches the same kernels, on the same addresses, without Python. The random
generator of the device goes on in it as it does outside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import increment_version
from torch.utils._pytree import tree_leaves

from sgc.emit.fx.module_laws import devices
from sgc.emit.fx.rewriting import takes_any_size, writes
from sgc.emit.inductor.compile_graph import Runner
from sgc.emit.rewrites.optimize import Record, Report
from sgc.errors import StandInWarning
from sgc.graph.effects import is_random

_LASTS = 0.5
"""Milliseconds that a graph of many steps is to take, if enough steps are asked for: a hundred times its launch."""

_MOST = 64
"""The most steps in a graph."""

_TIMED = 8
"""How many replays are timed before: the first ones take longer, and others may use the machine."""


def why_not_replayed(module: fx.GraphModule, inputs: Iterable[Tensor]) -> str | None:
    """Why a module cannot be a CUDA graph, or None if it may be one.

    A graph repeats what was done on the GPU. What is done elsewhere is left as it was: that is right for numbers that
    depend on literals alone, and for nothing else.
    """
    if takes_any_size(module):
        return "sizes differ from call to call"
    gpus = {tensor.device for tensor in inputs if tensor.device.type == "cuda"}
    if len(gpus) > 1:
        return f"inputs are on {', '.join(sorted(map(str, gpus)))}"
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


def replayed_on(module: fx.GraphModule, inputs: Sequence[Tensor], report: Report) -> tuple[torch.device | None, Report]:
    """The GPU on which a module will be replayed, or None; if it computes on one, the report of its rewrites says so.

    :param inputs: examples.
    :param report: how the module was rewritten.
    """
    gpus = [device for device in devices(module) if device.type == "cuda"]
    if not gpus:
        return None, report
    obstacle, count = why_not_replayed(module, inputs), len(module.graph.nodes)
    record = Record("replay", obstacle is None, count, count, f"no CUDA graph: {obstacle}" if obstacle else "")
    return (gpus[0] if obstacle is None else None), Report((*report.records, record))


class ReplayedStep:
    """A compiled step with those of its inputs that stay the same tensors, as CUDA graphs of one and of many steps.

    The first call runs the step as it is, because kernels are loaded when they are first used; the second is captured.

    :param run: the compiled step.
    :param inputs: its inputs; None for those that each call brings, which the step does not write.
    :param written: the positions of those that it writes, which autograd is told about.
    :param device: the GPU that it runs on.
    """

    def __init__(
        self, run: Runner, inputs: Sequence[Tensor | None], written: Sequence[int], device: torch.device
    ) -> None:
        self._run = run
        self._inputs = list(inputs)
        self._device = device
        self._places = _Places([position for position, tensor in enumerate(inputs) if tensor is None], written)
        self._written = [tensor for position in written if (tensor := inputs[position]) is not None]
        self._warm = self._given_up = False
        self._graphs: dict[int, _Graph] = {}
        self._times: list[float] = []
        self._many = 1  # how many steps the larger graph has, once enough replays have been timed

    def __call__(self, tensors: Sequence[Tensor], steps: int) -> list[Tensor]:
        """Take at least one step and at most ``steps``; what they give, each result a tensor of shape ``[taken]``."""
        return [column.clone() for column in self._taken(tensors, steps)]

    def once(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Take one step; what it gives, as numbers: a loss, and whether it was valid. This waits for the GPU."""
        loss, *valid = self._taken(tensors, 1)
        number = loss.item()
        return [number, *(holds.item() if number != number else True for holds in valid)]  # else the loss is NaN

    def _taken(self, tensors: Sequence[Tensor], steps: int) -> list[Tensor]:
        """What steps give, in memory that the next steps write into."""
        inputs: list[Any] = [*tensors, *self._inputs[len(tensors) :]]
        if not self._warm or self._given_up:
            self._warm = True
            return _columns([self._run(*inputs)])
        if not self._places.take(inputs):
            self._graphs.clear()
        number = self._many if 1 in self._graphs and self._many <= steps else 1
        if number not in self._graphs:
            graph = _captured(lambda: _columns([self._run(*inputs) for _ in range(number)]), self._device)
            if graph is None:
                self._given_up = True
                self._graphs.clear()
                return self._taken(tensors, steps)
            self._graphs[number] = graph
            graph.replay()
        elif steps > 1 and len(self._times) < _TIMED:
            self._times.append(self._graphs[number].timed())
            if len(self._times) == _TIMED:
                self._many = min(_MOST, math.ceil(_LASTS / min(self._times)))
        else:
            self._graphs[number].replay()
        increment_version(self._written)
        return self._graphs[number].results


class ReplayedCall:
    """A compiled callable as a CUDA graph; what it returns is the caller's own.

    :param run: takes tensors, and returns a list of tensors.
    :param written: the positions of the inputs that it writes, which autograd is told about.
    :param device: the GPU that it runs on.
    """

    def __init__(self, run: Runner, written: Sequence[int], device: torch.device) -> None:
        self._run = run
        self._written = written
        self._device = device
        self._places: _Places | None = None
        self._graph: _Graph | None = None
        self._layout: list[tuple[torch.dtype, torch.Size]] = []
        self._moves = 0
        self._warm = self._given_up = False

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        if not self._warm or self._given_up:
            self._warm = True
            return self._run(*tensors)
        inputs = list(tensors)
        self._places = self._places or _Places(range(len(inputs)), self._written)
        if not self._places.take(inputs):
            self._graph = None
            self._moves += 1
        if self._graph is None and self._moves <= _MOVES:
            self._graph = _captured(lambda: self._joined(self._run(*inputs)), self._device)
        if self._graph is None:
            self._given_up = True
            return self._run(*tensors)
        self._graph.replay()
        increment_version([tensors[position] for position in self._written])
        return self._parted(self._graph.results)

    def _joined(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Results, one behind the other, for each dtype: one copy is made of many then."""
        self._layout = [(result.dtype, result.shape) for result in results]
        joined: dict[torch.dtype, list[Tensor]] = {}
        for result in results:
            joined.setdefault(result.dtype, []).append(result.reshape(-1))
        return [torch.cat(parts) for parts in joined.values()]

    def _parted(self, joined: Sequence[Tensor]) -> list[Tensor]:
        parts: dict[torch.dtype, Iterator[Tensor]] = {}
        for whole in joined:
            sizes = [shape.numel() for dtype, shape in self._layout if dtype == whole.dtype]
            parts[whole.dtype] = iter(whole.clone().split(sizes))
        return [next(parts[dtype]).view(shape) for dtype, shape in self._layout]


_MOVES = 8
"""After this many captures, each because inputs lay elsewhere, a callable is run as it is."""


class _Places:
    """Where graphs read their inputs: where these lie, or, of one that has not stayed there, in a copy.

    :param movable: the positions of the inputs that may lie elsewhere from call to call.
    :param written: the positions of those that are written, of which there is no copy.
    """

    def __init__(self, movable: Iterable[int], written: Iterable[int]) -> None:
        self._movable = tuple(movable)
        self._written = frozenset(written)
        self._addresses: dict[int, int] = {}
        self._copies: dict[int, Tensor] = {}

    def take(self, inputs: list[Any]) -> bool:
        """Put what graphs are to read into the list of a call's inputs; whether it lies where it lay before."""
        stayed = True
        for position in self._movable:
            tensor, copy = inputs[position], self._copies.get(position)
            if copy is None:
                address = tensor.data_ptr()
                if self._addresses.setdefault(position, address) == address:
                    continue
                stayed = False
                if position in self._written:
                    self._addresses[position] = address
                    continue
                copy = torch.empty_like(_memory(tensor)).as_strided(tensor.shape, tensor.stride())
                self._copies[position] = copy
            if copy.is_contiguous():
                copy.copy_(tensor.detach())
            else:  # its elements may share memory
                _memory(copy).copy_(_memory(tensor))
            inputs[position] = copy
        return stayed


def _memory(tensor: Tensor) -> Tensor:
    """The stretch of memory from a tensor's first element to its last, whatever its strides."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((last + 1 if tensor.numel() else 0,), (1,))


class _Graph:
    """A CUDA graph; ``results`` are there after a replay."""

    def __init__(self, make: Callable[[], list[Tensor]], device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (that of a DataLoader, say) may go on using the GPU meanwhile.
        capture = torch.cuda.graph(self._graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local")
        with torch.no_grad(), torch.cuda.device(device), capture:
            self.results = make()

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


def _captured(make: Callable[[], list[Tensor]], device: torch.device) -> _Graph | None:
    """The graph of what ``make`` does on a device, or None, with a warning, if something in it cannot be captured."""
    stream = torch.cuda.current_stream(device)
    try:
        return _Graph(make, device)
    except RuntimeError as error:
        text = f"kernels are launched one by one from Python, because there is no CUDA graph of them: {error}"
        warnings.warn(text, StandInWarning, stacklevel=2)
    # A capture that fails leaves its stream the current one, and the random generator as if it went on.
    torch.cuda.set_stream(stream)
    _Graph(lambda: [torch.zeros((), device=device)], device)
    return None


def _columns(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The results of steps, each as one tensor for all of them."""
    return [torch.cat([result.reshape(1) for result in column]) for column in zip(*rows, strict=True)]
