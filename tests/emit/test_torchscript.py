"""What torch's tracer of TorchScript cannot record, or drops."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sgc.emit.backends.registry import build
from tests.emit.rewrites.graphs import results, traced

X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)


def runner(program: Callable[..., list[Tensor]], *examples: Tensor) -> tuple[Any, Any]:
    module = traced(program, *examples)
    run = build(module, list(examples), "torchscript", "torch").run
    gc.collect()
    return module, run


def unused(draw: Callable[[], Any]) -> Callable[[Tensor], list[Tensor]]:
    def program(x: Tensor) -> list[Tensor]:
        draw()
        return [x * torch.rand(2)]

    return program


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3),
        lambda: F.dropout(torch.ones(3)),
        lambda: torch.native_dropout(torch.ones(3), 0.5, True),
        lambda: torch.normal(torch.ones(3), 2.0),
        lambda: torch.bernoulli(torch.full((3,), 0.5)),
        lambda: torch._standard_gamma(torch.ones(3)),
        lambda: torch.empty(3).exponential_(),
        lambda: torch.randperm(5),
    ],
)
def test_draws_that_nothing_uses(draw: Callable[[], Any]) -> None:
    x = torch.ones(2)
    module, run = runner(unused(draw), x)
    for seed in range(3):
        (expected, _), state = results(module, x, seed=seed), torch.get_rng_state()
        torch.manual_seed(seed)
        (found,) = run(x)
        assert torch.equal(found, expected)
        assert torch.equal(torch.get_rng_state(), state)


def gradients(function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    def program(*inputs: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            value = function(*leaves).tanh().sum()
            return [value.detach(), *torch.autograd.grad(value, leaves)]

    return program


LAYERS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "batch norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (X, torch.ones(3), torch.zeros(3))),
    "instance norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), (X, torch.ones(3), torch.zeros(3))),
    "layer norm": (lambda x, w, b: F.layer_norm(x, [4], w, b), (X, torch.ones(4), torch.zeros(4))),
    "group norm, batched": (
        lambda x, w, b: sum(
            F.group_norm(torch.stack([x[:, 0] * i, x[:, 1] + i, x[:, 2]], 1), 3, w, b)[:, 1] * i for i in range(1, 9)
        ),
        (X, torch.ones(3), torch.zeros(3)),
    ),
    "group norm": (lambda x, w, b: F.group_norm(x, 3, w, b), (X, torch.ones(3), torch.zeros(3))),
    "convolution": (lambda x, w: F.conv1d(x, w), (X, torch.ones(2, 3, 2))),
    "transposed": (lambda x, w, b: F.conv_transpose1d(x, w, b), (X, torch.ones(3, 2, 2), torch.ones(2))),
    "grid": (lambda x, g: F.grid_sample(x, g, align_corners=False), (X[:, :, None], X[:, None, :, :2])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backwards_of_some_of_their_operands(name: str) -> None:
    function, examples = LAYERS[name]
    module, run = runner(gradients(function), *examples)
    for _ in range(3):
        for ours, theirs in zip(run(*examples), module(*examples), strict=True):
            torch.testing.assert_close(ours, theirs)


def filled(x: Tensor) -> list[Tensor]:
    own = torch.empty(3, 4).t().zero_()  # neither contiguous nor known
    return [own.index_add(0, torch.tensor([1]), x[:1]), torch.fill(x, x.sum()), torch.fill(x.int(), x.max())]


def test_fills() -> None:
    x = torch.linspace(0, 5, 12).reshape(4, 3)
    module, run = runner(filled, x)
    for _ in range(3):
        for ours, theirs in zip(run(x), module(x), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype is theirs.dtype


def test_errors_of_linear_algebra_have_their_type() -> None:
    x = torch.eye(2)
    _, run = runner(lambda x: [torch.linalg.svdvals(x)], x)
    with pytest.raises(torch.linalg.LinAlgError, match=r"^linalg.svd: .*converge"):
        run(x * float("nan"))
    assert torch.equal(run(x)[0], torch.ones(2))
