"""Every (n + 1)th number of an n by n matrix is its diagonal, whether it is read, written or derived."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sgc.emit.rewrites.optimize import optimize
from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

X = torch.linspace(-1.0, 2.0, 12).reshape(4, 3)
JITTER = torch.tensor(0.1)


def covariance(x: Tensor) -> Tensor:
    return (x[:, None] - x).square().sum(-1).neg().exp() * 2.0


def in_place(x: Tensor, jitter: Tensor) -> list[Tensor]:
    k = covariance(x)
    k.view(-1)[:: len(k) + 1] += jitter
    return [torch.linalg.cholesky(k)]


def set_to_a_number(x: Tensor, jitter: Tensor) -> list[Tensor]:
    k = covariance(x)
    k.view(-1)[:: len(k) + 1] = 3.0
    return [k, k.sum() * jitter]


def read(x: Tensor, jitter: Tensor) -> list[Tensor]:
    k = covariance(x)
    return [k.reshape(-1)[:: len(k) + 1] * jitter]


def given_flat(x: Tensor, jitter: Tensor) -> list[Tensor]:
    k = covariance(x).exp().view(-1)
    k[::5].mul_(jitter)
    return [k, k[:2]]


def with_gradient(x: Tensor, jitter: Tensor) -> list[Tensor]:
    x, jitter = x.detach().requires_grad_(), jitter.detach().requires_grad_()
    with torch.enable_grad():
        k = covariance(x)
        k.view(-1)[:: len(k) + 1] += jitter
        total = (torch.linalg.cholesky(k) * x[:, :1]).sum()
        return [total.detach(), *torch.autograd.grad(total, [x, jitter])]


def flat_slices(shown: list[str]) -> list[str]:
    """The lines that read or write every fifth number."""
    return [line for line in shown if "slice" in line and line.endswith(", 5)")]


@pytest.mark.parametrize("program", [in_place, set_to_a_number, read, given_flat, with_gradient])
def test_a_diagonal(program: Callable[..., list[Tensor]]) -> None:
    module = traced(program, X, JITTER)
    before = results(module, X, JITTER)
    apply("functionalise", module)
    apply("remove_identities", module)
    assert apply("take_diagonals", module)
    assert equal(results(module, X, JITTER), before)
    apply("remove_identities", module)
    assert not flat_slices(lines(module))


def other_step(x: Tensor) -> list[Tensor]:
    return [torch.slice_scatter(x.view(-1), x[0], 0, 0, 16, 6)]


def other_start(x: Tensor) -> list[Tensor]:
    return [torch.slice_scatter(x.view(-1), x[0, :3], 0, 1, 16, 5)]


def a_part(x: Tensor) -> list[Tensor]:
    return [x.view(-1)[:11:5] * 2]


def not_square(x: Tensor) -> list[Tensor]:
    return [x[:3].reshape(-1)[::5] * 2, torch.slice_scatter(x[:3].reshape(-1), x[0, :3], 0, 0, 12, 5)]


@pytest.mark.parametrize("program", [other_step, other_start, a_part, not_square])
def test_what_is_no_diagonal(program: Callable[..., list[Tensor]]) -> None:
    square = torch.linspace(0.0, 1.0, 16).reshape(4, 4)
    module = traced(program, square)
    assert not apply("take_diagonals", module)


def test_the_whole_pipeline() -> None:
    module = traced(with_gradient, X, JITTER)
    optimized = optimize(module, [X, JITTER]).module
    assert equal(results(optimized, X, JITTER), results(module, X, JITTER))
    assert not flat_slices(lines(optimized))
