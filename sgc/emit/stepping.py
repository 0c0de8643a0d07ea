"""A whole training step, compiled by Inductor, that is taken once or many times in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from sgc.config import Rng
from sgc.emit.backends import Runner
from sgc.emit.guarded import written_inputs
from sgc.emit.inductor import compile_graph
from sgc.emit.native import NativeProgram, native_program
from sgc.emit.optimize.nodes import attribute
from sgc.emit.optimize.pipeline import Report, optimize


@dataclass
class BuiltStep:
    """A step as it was rewritten, and what it was compiled to.

    On the CPU the compiled program is called from C++ (:mod:`sgc.emit.native`), which spares each step the way through
    Python. On another device, and where what is written shares memory, each step is a call of its own.
    """

    module: fx.GraphModule
    report: Report
    examples: list[Tensor]
    rng: Rng
    detour: bool = False
    """Whether each step goes through Python because the compiled program was not recognised."""
    _run: Runner | None = None
    _native: NativeProgram | None = None
    _attributes: list[Tensor] = field(default_factory=list)
    _written: list[int] = field(default_factory=list)

    @property
    def compiled(self) -> bool:
        """Whether it can be called."""
        return self._run is not None

    def compile(self) -> None:
        """Compile it.

        :raises sgc.errors.BackendError: if Inductor cannot work on this machine.
        """
        lifted, self._attributes = _attributes_as_inputs(self.module)
        examples = [*self.examples, *self._attributes]
        self.examples = []  # they hold the memory of what may be long gone
        self._run = compile_graph(lifted, examples, self.rng)
        self._written = sorted(written_inputs(lifted))
        if all(tensor.device.type == "cpu" for tensor in examples) and not _shares_storage(examples, self._written):
            (results,) = next(node for node in lifted.graph.nodes if node.op == "output").args
            self._native = native_program(self._run, len(examples), [node.meta["val"].dtype for node in results])
            self.detour = self._native is None

    def __call__(self, inputs: Sequence[Tensor], steps: int) -> list[Tensor]:
        """Take at least one step and at most so many.

        :return: what they return, losses first, each result a tensor of shape ``[taken]``.
        """
        assert self._run is not None
        if self._native is None:
            return [result.reshape(1) for result in self._run(*inputs, *self._attributes)]
        try:
            return self._native([*inputs, *self._attributes], steps)
        finally:
            torch.autograd.graph.increment_version([inputs[i] for i in self._written])


def _attributes_as_inputs(module: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """A module that takes as its last inputs the tensors that it would look up, and those tensors."""
    graph, found, copies = fx.Graph(), [], {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(attribute(node), Tensor):
            found.append(attribute(node))
            copies[node] = graph.placeholder(f"attribute_{len(found)}")
            copies[node].meta.update(node.meta)
    graph.output(graph.graph_copy(module.graph, copies))
    return fx.GraphModule(module, graph), found


def _shares_storage(tensors: Sequence[Tensor], written: Sequence[int]) -> bool:
    """Whether one of the tensors that are written shares its storage with another one: torch passes such on as one."""
    count = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel())
    return any(count[tensors[i].untyped_storage().data_ptr()] > 1 for i in written)


def build_step(module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng) -> BuiltStep:
    """Rewrite the module of a step (:func:`sgc.emit.step.emit_step`); it is compiled when that is asked for."""
    examples = [tensor.detach() for tensor in tensors]
    optimized = optimize(module, examples, rng=rng)
    return BuiltStep(optimized.module, optimized.report, examples, rng)
