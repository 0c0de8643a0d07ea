"""What is recorded of a function is what ``make_fx`` traces, and what cannot be recorded is traced by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from sgc.emit.differentiate import _tidy
from sgc.emit.fx import recorded_operators
from sgc.emit.fx.lazy_modules import trace_fake
from sgc.emit.fx.recorded_operators import record
from tests.emit.rewrites.graphs import equal, lines, results

X = torch.linspace(-1.0, 2.0, 12).reshape(4, 3)
Y = torch.linspace(0.5, 1.5, 3)
CLOSED_OVER = torch.tensor([1.0, 2.0, 3.0])


def gradients(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], list[Tensor]]:
    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        with torch.enable_grad():
            total = function(x, y)
            return [total.detach(), *torch.autograd.grad(total, [x, y])]

    return run


def in_place(x: Tensor, y: Tensor) -> list[Tensor]:
    x[0].add_(y).clamp_(min=0.0)
    kept = y.detach()
    y.mul_(2.0)
    return [x, kept + 1.0]


def drawn(x: Tensor, y: Tensor) -> list[Tensor]:
    return [torch.empty_like(x).normal_(), torch.bernoulli(y / 2), nn.functional.dropout(x, 0.5), torch.rand(2)]


def normalised(x: Tensor, y: Tensor) -> Tensor:
    mean, variance = torch.zeros(3), torch.ones(3)
    out = nn.functional.batch_norm(x, mean, variance, y, training=True)
    return (out.exp() * torch.tensor(2.0) + mean.detach()).sum()


PROGRAMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "arithmetic": lambda x, y: [x * y, (x > 0) & (y < 1), x.to(torch.int64), x.sum(0, keepdim=True)],
    "a gradient": gradients(lambda x, y: (x * y).exp().sum().log()),
    "look-ups": gradients(
        lambda x, y: x[torch.tensor([0, 2, 0])].gather(1, torch.tensor([[0], [1], [2]])).sum() * y[1]
    ),
    "several results": gradients(lambda x, y: sum((part * y).sum() for part in x.unbind(0)) + x.topk(2).values.prod()),
    "a factor": gradients(lambda x, y: torch.linalg.cholesky(x @ x.t() + torch.eye(4)).sum() + y.prod()),
    "mixed precision": gradients(
        lambda x, y: torch.autocast("cpu", torch.bfloat16)(lambda: (x @ y).float().sum() + y.sum())()
    ),
    "complex numbers": lambda x, y: [torch.fft.rfft(x).abs(), torch.view_as_real(torch.complex(x, x)).sum() * y],
    "a tensor closed over": lambda x, y: [x * CLOSED_OVER, CLOSED_OVER + y],
    "draws": drawn,
    "an input as it is": lambda x, y: [x, y.detach(), y.t()],
    "the same thing twice": lambda x, y: [x.sin().sum(), x.sin().sum(), x.cos().sin()],
    "numbers of three types": lambda x, y: [x + 1, x + 1.0, x.long() + True, x.long() + 1, x.long() * 1.0],
}


def described(module: fx.GraphModule) -> list[str]:
    """The lines of a graph, with nodes named in their order, and what each value is."""
    names = {node: f"n{i}" for i, node in enumerate(module.graph.nodes)}
    for node, name in names.items():
        node._rename(name)
    values = [node.meta.get("val") for node in module.graph.nodes]
    kinds = [(v.shape, v.stride(), v.dtype, v.requires_grad) if isinstance(v, Tensor) else None for v in values]
    return [*lines(module), *map(str, kinds)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_recorded_is_what_is_traced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = trace_fake(PROGRAMS[name], [X, Y])
    monkeypatch.delattr(recorded_operators, "trace_fake")
    recorded = record(PROGRAMS[name], [X, Y])
    for module in (traced, recorded):
        _tidy(module)
    assert described(recorded) == described(traced)
    assert equal(results(recorded, X, Y), results(traced, X, Y))


@pytest.mark.parametrize("program", [in_place, gradients(normalised)])
def test_a_detached_tensor_is_the_tensor(program: Any) -> None:
    """Which ``make_fx`` notes as another node where the memory is written."""
    traced, recorded = trace_fake(program, [X, Y]), record(program, [X, Y])
    detach = torch.ops.aten.detach.default
    assert traced.graph.find_nodes(op="call_function", target=detach)
    assert not recorded.graph.find_nodes(op="call_function", target=detach)
    assert equal(results(recorded, X, Y), results(traced, X, Y))


def reads_a_literal(x: Tensor, y: Tensor) -> list[Tensor]:
    return [x * torch.tensor(2.0).item(), y]


def turned(x: Tensor, y: Tensor) -> list[Tensor]:
    z = x * 2
    z.t_()
    return [z + 1.0, y]


def of_any_size(x: Tensor, y: Tensor) -> list[Tensor]:
    return [x[x > 0] * 2.0, y]


@pytest.mark.parametrize("program", [reads_a_literal, turned, of_any_size])
def test_what_cannot_be_recorded_is_traced(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[Any] = []

    def counted(*args: Any) -> fx.GraphModule:
        traces.append(args)
        return trace_fake(*args)

    monkeypatch.setattr(recorded_operators, "trace_fake", counted)
    module = record(program, [X, Y])
    assert len(traces) == 1
    assert equal(results(module, X, Y), [*program(X.clone(), Y.clone()), X, Y])


def test_errors_are_those_of_the_function() -> None:
    with pytest.raises(RuntimeError, match="broadcast"):
        record(lambda x, y: [x + y[:2]], [X, Y])


def test_an_operator_is_computed_once_for_all_calls_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []
    is_new = recorded_operators._is_new

    def counted(*args: Any) -> bool:
        computed.append(args)
        return is_new(*args)

    monkeypatch.setattr(recorded_operators, "_is_new", counted)

    def program(x: Tensor, y: Tensor) -> list[Tensor]:
        for _ in range(20):
            x = (x * y).exp()
        return [x]

    module = record(program, [X, Y])
    assert len(computed) == 2
    assert sum(node.target is torch.ops.aten.exp.default for node in module.graph.nodes) == 20
