"""The bound: the whole step written in plain torch, gradient and Adam included, as one graph for Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._inductor
import torch._inductor.config as inductor_config
from torch import Tensor, fx
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.systems.base import LEARNING_RATE
from benchmarks.systems.torch_base import TorchSystem

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class ByHand(TorchSystem):
    """No Pyro, no guards, no names: what compiled torch can do for this mathematics.

    It writes the parameters, their moments and the count of steps in place, and returns the loss.
    """

    def prepare(self) -> None:
        self.names = list(self.workload.unconstrained())
        params = [torch.tensor(value) for value in self.workload.unconstrained().values()]
        self.state = [torch.tensor(0.0), *params, *(torch.zeros_like(p) for _ in range(2) for p in params)]
        self.compiled = self.compile()
        if self.device != "cpu":
            self.compiled = self.replayed(self.compiled)

    def advance(self) -> Tensor:
        loss: Tensor = self.compiled(*self.state, *self.args)[0]
        return loss

    def replayed(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step as a CUDA graph, as whoever writes it by hand for a GPU would have it."""
        step(*self.state, *self.args)  # loads the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss: Tensor = step(*self.state, *self.args)[0]

        def replay(*_: Tensor) -> list[Tensor]:
            graph.replay()
            return [loss.clone()]

        return replay

    def compile(self) -> Callable[..., Any]:
        """The step, from state and data."""
        inputs = [*self.state, *self.args]
        # On a CPU torch draws random numbers faster than Inductor's generator; on a GPU the latter fuses. The rest is
        # what makes small steps fast there, and what sgc asks for as well.
        on_cpu = self.device == "cpu"
        options: dict[str, Any] = {"fallback_random": on_cpu, "cpp_wrapper": on_cpu, "memory_planning": on_cpu}
        options |= {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
        options |= {"cpp.vec_isa_ok": True} if on_cpu else {"combo_kernels": True}
        with torch.no_grad():
            graph = make_fx(self._step, tracing_mode="fake")(*inputs)
            try:
                return _inductor(graph, inputs, options)
            except InductorError:
                # torch 2.13 fails (KeyError in the C++ code generator) where updates in place are fused with what
                # reads the parameter, as in LDA; it works where fewer loops are fused.
                return _inductor(graph, inputs, options | {"cpp.max_horizontal_fusion_size": 0})

    def loss_and_gradients(self, params: list[Tensor], data: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the surrogate's gradients."""
        with torch.enable_grad():
            leaves = [param.detach().requires_grad_() for param in params]
            loss, surrogate = self._losses(dict(zip(self.names, leaves, strict=True)), data)
            return loss.detach(), list(torch.autograd.grad(surrogate, leaves))

    def _losses(self, params: dict[str, Tensor], data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if self.particles == 1:
            return self.workload.by_hand(params, *data)
        each = torch.vmap(lambda _: self.workload.by_hand(params, *data), randomness="different")
        losses, surrogates = each(torch.zeros(self.particles))
        return losses.mean(), surrogates.mean()

    def _step(self, *inputs: Tensor) -> list[Tensor]:
        count = len(self.names)
        steps, state, data = inputs[0], inputs[1 : 1 + 3 * count], inputs[1 + 3 * count :]
        params, firsts, seconds = state[:count], state[count : 2 * count], state[2 * count :]
        loss, gradients = self.loss_and_gradients(list(params), data)
        steps.add_(1.0)
        unbias_1, unbias_2 = 1 - BETA_1**steps, (1 - BETA_2**steps).sqrt()
        for param, first, second, gradient in zip(params, firsts, seconds, gradients, strict=True):
            first.mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
            second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
            param.sub_(LEARNING_RATE / unbias_1 * first / (second.sqrt() / unbias_2 + EPSILON))
        return [loss]


def _inductor(graph: fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    # As sgc asks for: not to tune kernels on random inputs, which as indices are out of bounds.
    own = {"config_patches": {"triton.autotune_at_compile_time": False}} if inputs[0].is_cuda else None
    with inductor_config.patch(options):
        return torch._inductor.standalone_compile(graph, inputs, dynamic_shapes="from_example_inputs", options=own)
