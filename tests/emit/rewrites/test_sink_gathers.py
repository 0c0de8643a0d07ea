"""Look-ups come last: the same values, bit by bit, from operators on tables; gradients but for the order of sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import sgc
from sgc.emit.differentiate import differentiate
from sgc.emit.fx.rewriting import copy_of, tensor_of
from sgc.emit.rewrites.before_gradient.sink_gathers import sink_gathers
from sgc.runtime.specializing.compiler import differentiate_loss

Function = Callable[..., Any]

TABLE = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))
Z = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
COLUMN = torch.tensor([[4, 0, 1, 1], [2, 3, 0, 4]])
ROW = torch.linspace(0.5, 1.5, 5)

MOVED: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "elements": (lambda t, z: t[z].exp().clamp(0.1, 2.0) * 2 + 1, (TABLE, Z)),
    "with a row": (lambda t, z, row: t[z] * row - 1, (TABLE, Z, ROW)),
    "with a number": (lambda t, z, x: t[z] / x, (TABLE, Z, torch.tensor(3.0))),
    "two of one index": (lambda t, z, row: torch.maximum(t[z], (t + row)[z].exp()), (TABLE, Z, ROW)),
    "log_softmax": (lambda t, z: (t[z] - t[z].logsumexp(-1, True)).softmax(-1), (TABLE, Z)),
    "sums": (lambda t, z: (t[z] / t[z].sum(-1, keepdim=True)).sum([2]), (TABLE, Z)),
    "positive dimensions": (lambda t, z: t[z].cumsum(3).amax(2), (WIDE, Z)),
    "all": (lambda t, z: (t[z] > 0).all(-1), (TABLE, Z)),
    "shapes": (lambda t, z: t[z].unsqueeze(-1).expand(2, 4, 5, 3).reshape(2, 4, 15).exp(), (TABLE, Z)),
    "parts": (lambda t, z: t[z][..., 1:3].exp() + t[z].select(2, 0).unsqueeze(2), (TABLE, Z)),
    "an index of one": (lambda t, z: t[z.reshape(1)][0].exp(), (TABLE[:1], torch.tensor(0))),
    "an expanded look-up": (lambda t, z: t[z].expand(6, 2, 4, 5).exp(), (TABLE, Z)),
    "index_select": (lambda t, z: torch.index_select(t, 0, z).exp(), (TABLE, Z[0])),
    "embedding": (lambda t, z: F.embedding(z, t).exp(), (TABLE, Z)),
    "an entry": (lambda t, z, c: t[z].log_softmax(-1).gather(-1, c.unsqueeze(-1)).squeeze(-1), (TABLE, Z, COLUMN)),
}

LEFT: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "a long table": (lambda t, z: t[z].exp(), (torch.randn(20, 5), Z)),
    "a mask": (lambda t, m: t[m].exp(), (TABLE, torch.tensor([True, True, True]))),
    "a sum over rows": (lambda t, z: t[z].sum(0), (TABLE, Z)),
    "an operand for each row": (lambda t, z, x: t[z] + x, (TABLE, Z, torch.ones(2, 4, 1))),
    "two indices": (lambda t, z, y: t[z] + t[y], (TABLE, Z, COLUMN % 3)),
    "an index in the second place": (lambda t, z: t[:, z].exp(), (TABLE, Z)),
    "another index for each row": (lambda t, z: t[z].gather(-1, z.unsqueeze(-1).expand(2, 4, 3)), (TABLE, Z)),
    "new dimensions like the index": (lambda t, z: t[z].expand(2, 4, 2, 4, 5).exp(), (TABLE[:, :1], Z)),
    "a product": (lambda t, z: t[z] @ t[z].mT, (TABLE, Z)),
    "a draw": (lambda t, z: torch.bernoulli(t[z]), (TABLE.sigmoid(), Z)),
}


def traced(function: Function, tensors: tuple[Tensor, ...]) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake", pre_dispatch=True)(*tensors)


def elements(module: fx.GraphModule) -> int:
    """How many elements are computed, look-ups aside."""
    looked_up = (torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default, torch.ops.aten.embedding.default)
    nodes = [node for node in module.graph.nodes if node.op == "call_function" and node.target not in looked_up]
    return sum(value.numel() for node in nodes if (value := tensor_of(node)) is not None)


@pytest.mark.parametrize("name", MOVED)
def test_look_ups_that_move(name: str) -> None:
    function, tensors = MOVED[name]
    before = traced(function, tensors)
    module = copy_of(before)
    assert sink_gathers(module)
    assert torch.equal(module(*tensors), before(*tensors))
    assert elements(module) < elements(before) or name == "an index of one"
    assert not sink_gathers(module)


@pytest.mark.parametrize("name", LEFT)
def test_look_ups_that_stay(name: str) -> None:
    function, tensors = LEFT[name]
    module = traced(function, tensors)
    code = module.code
    assert not sink_gathers(module)
    assert module.code == code


@pytest.mark.parametrize("name", [name for name in MOVED if name != "all"])
def test_gradients(name: str) -> None:
    function, tensors = MOVED[name]

    def losses(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        loss = function(*inputs).sin().sum()
        return loss, loss

    before = traced(losses, tensors)
    module = copy_of(before)
    assert sink_gathers(module)
    found, expected = (differentiate(m, list(tensors), [0]).module(*tensors) for m in (module, before))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=2e-6, atol=1e-6)


def test_types_that_a_single_number_would_change() -> None:
    """A row of one number is float64 after it meets one; a table would stay float32."""
    table, number = torch.ones(1), torch.tensor(2.0, dtype=torch.float64)
    module = traced(lambda t, z, x: torch.ops.aten.index(t, [z]) * x, (table, torch.tensor(0), number))
    assert not sink_gathers(module)
    assert module(table, torch.tensor(0), number).dtype is torch.float64


def test_a_table_that_is_written() -> None:
    def function(table: Tensor, z: Tensor) -> Tensor:
        rows = table[z]
        table.add_(1)
        return rows.exp()

    module = traced(function, (TABLE.clone(), Z))
    assert not sink_gathers(module)


def mixture() -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor) -> None:
        words = pyro.param("words", torch.ones(3, 6).cumsum(-1), constraint=dist.constraints.positive)
        weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraint=dist.constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Categorical(words[z]), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(x), 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    return model, guide


def test_a_mixture_normalises_its_table() -> None:
    """Of 40 words of 6 letters, Pyro makes 40 distributions; three are enough."""
    pyro.clear_param_store()
    x = torch.arange(40) % 6
    modules = [sgc.compile(*mixture(), backend=backend).initialize(x) for backend in ("eager", "torchscript")]
    derived = []
    for module in modules:
        found = module.specializations[-1]
        tensors = tensors_of(module, x)
        derived.append(differentiate_loss(found, tensors).module)
    assert shapes(derived[0]) & {(40, 6)} and not shapes(derived[1]) & {(40, 6)}
    for module in modules:
        assert module.verify(x).ok


def tensors_of(module: sgc.LossModule, *args: Any) -> list[Tensor]:
    return module.specialization_for(*args)[1]


def shapes(module: fx.GraphModule) -> set[tuple[int, ...]]:
    values = [value for node in module.graph.nodes if (value := tensor_of(node)) is not None]
    return {tuple(value.shape) for value in values if value.dtype.is_floating_point}
