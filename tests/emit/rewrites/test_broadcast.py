"""What many elements use is computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor import codecache
from torch._inductor.utils import fresh_cache

from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.rewrites.optimize import optimize
from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

STEP = torch.tensor(3.0)
WEIGHTS = torch.arange(1024.0).reshape(32, 32)


def stored(function: object, *examples: Tensor) -> list[str]:
    """The nodes that get memory of their own."""
    module = traced(function, *examples)  # type: ignore[arg-type]
    before = results(module, *examples)
    changed = apply("compute_once", module)
    assert equal(results(module, *examples), before)
    found = [line.partition("as_strided(")[2].partition(",")[0] for line in lines(module) if "as_strided(" in line]
    assert changed == bool(found)
    return found


def test_a_bias_correction() -> None:
    """The last operator before the broadcast, so that all of the arithmetic on one number is done once."""
    assert stored(lambda step, w: [w / (1 - 0.9**step).sqrt()], STEP, WEIGHTS) == ["sqrt"]


def test_through_a_view() -> None:
    """Rows of one tensor: that tensor is stored, once."""
    steps = torch.tensor([3.0, 4.0])

    def f(steps: Tensor, w: Tensor) -> list[Tensor]:
        corrections = 1 - 0.9**steps
        return [w / corrections[0], w.t() / corrections[1]]

    assert stored(f, steps, WEIGHTS) == ["rsub"]


@pytest.mark.parametrize(
    "function",
    [
        lambda step, w: [w / (1 - 0.9 * step)],  # cheap
        lambda step, w: [w[0, :4] / (1 - 0.9**step)],  # few
        lambda step, w: [(w / (0.9**w)).sum() * step],  # of the same size
        lambda step, w: [w / step],  # an input
        lambda step, w: [w - w.exp().sum()],  # a sum has memory of its own
    ],
)
def test_what_is_left_alone(function: object) -> None:
    assert stored(function, STEP, WEIGHTS) == []


def recurrence(shifted: Callable[[Tensor, Tensor], Tensor], steps: int) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Reads what is shifted in each step, and for the gradient."""

    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        total = y
        with torch.enable_grad():
            p = shifted(x, y)
            for _ in range(steps):
                total = (total * p + y) * (x + p)
            return [total.detach(), *torch.autograd.grad(total.sum(), x)]

    return run


BORDERED: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "padded": ("constant_pad_nd", lambda x, y: torch.nn.functional.pad(x, (1, 0))[..., :-1]),
    "padded on both sides": ("constant_pad_nd", lambda x, y: torch.nn.functional.pad(x, (1, 1), value=2.0)[..., 2:]),
    "read through a sum": ("constant_pad_nd", lambda x, y: torch.nn.functional.pad(x, (0, 1))[..., 1:] + y),
    "rows set": ("slice_scatter", lambda x, y: torch.slice_scatter(x, y[1:3], 0, 1, 3)),
    "a row set": ("select_scatter", lambda x, y: torch.select_scatter(x, y[3], 0, 5)),
}


@pytest.mark.parametrize("name", BORDERED)
def test_what_has_a_border_and_is_read_often(name: str) -> None:
    operator, shifted = BORDERED[name]
    assert operator in stored(recurrence(shifted, 3), WEIGHTS / 1024, WEIGHTS.t() / 1024)


def test_what_has_a_border_and_is_read_once() -> None:
    assert stored(lambda x, y: [torch.nn.functional.pad(x, (1, 0))[..., :-1] * y], WEIGHTS, WEIGHTS) == []


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["padded", "rows set"])
def test_code_does_not_grow_with_reads_beside_a_border(name: str) -> None:
    """Without memory of its own, each read is a function, and the gradient has hundreds."""
    inputs = [WEIGHTS / 1024, WEIGHTS.t().contiguous() / 1024]
    module = traced(recurrence(BORDERED[name][1], 8), *inputs)
    functions = []
    for skip in ((), ("compute_once",)):
        optimized = optimize(module, inputs, skip=skip)
        with fresh_cache():
            ours = compile_graph(optimized.module, inputs, "torch")(*inputs)
            sources = Path(codecache.cache_dir()).rglob("*.optimized.cpp")
            functions.append(sum(path.read_text().count("[&]") for path in sources))
        torch.testing.assert_close(list(ours), module(*inputs))
    assert functions[0] * 10 < functions[1]


def test_a_row_of_exponentials() -> None:
    """An operator that is vectorised is worth storing for more elements."""
    row = torch.linspace(0.0, 1.0, 32)
    assert stored(lambda row, w: [w * row.exp()], row, WEIGHTS) == ["exp"]
    assert stored(lambda row, w: [w[:4] * row.exp()], row, WEIGHTS) == []


def test_on_another_device() -> None:
    """A kernel more costs a GPU more than the arithmetic."""
    step, w = STEP.to("meta"), WEIGHTS.to("meta")
    module = traced(lambda step, w: [w / (1 - 0.9**step)], step, w)
    assert not apply("compute_once", module)
