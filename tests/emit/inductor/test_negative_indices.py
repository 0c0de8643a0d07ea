"""Indices that torch refuses are refused by what Inductor compiles, and those that it takes mean the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sgc.emit.backends.registry import build
from sgc.emit.fx.lift_tensors import lift_tensors
from sgc.emit.inductor.workarounds.negative_indices import refuse_negative_indices
from sgc.emit.rewrites.optimize import optimize
from tests.emit.rewrites.graphs import lines, traced

TABLE = torch.arange(12.0).reshape(4, 3)
ROWS = torch.ones(2, 3)


def rows(index: Tensor) -> Tensor:
    return index[:, None].expand(2, 3)


OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda x, i: x.index_select(0, i),
    "index_add": lambda x, i: x.index_add(0, i, ROWS),
    "index_copy": lambda x, i: x.index_copy(0, i, ROWS),
    "index_fill": lambda x, i: x.index_fill(0, i, 2.0),
    "index_put": lambda x, i: x.index_put((i,), ROWS),
    "index": lambda x, i: x[i],
    "gather": lambda x, i: x.gather(0, rows(i)),
    "take": lambda x, i: x.take(i),
    "put": lambda x, i: x.put(i, ROWS[:, 0]),
    "scatter": lambda x, i: x.scatter(0, rows(i), ROWS),
    "scatter_add": lambda x, i: x.scatter_add(0, rows(i), ROWS),
    "scatter_reduce": lambda x, i: x.scatter_reduce(0, rows(i), ROWS, "amax"),
    "embedding": lambda x, i: F.embedding(i, x),
    "nll_loss": lambda x, i: F.nll_loss(x[:2], i, reduction="none"),
    "nll_loss ignores": lambda x, i: F.nll_loss(x[:2], i, reduction="none", ignore_index=-1),
    "max_unpool": lambda x, i: F.max_unpool1d(x[None, :1, :2], i[None, None], 2),
}
INDICES = {"good": [0, 1], "last": [0, -1], "too large": [0, 12], "too small": [0, -13]}


def outcome(run: Callable[..., Any], *inputs: Tensor) -> Tensor | None:
    """What comes out, None if the indices are refused: as ``IndexError`` or ``RuntimeError``, in torch too."""
    try:
        (found,) = run(*inputs)
        return found
    except (IndexError, RuntimeError):
        return None


def agrees(operator: Callable[[Tensor, Tensor], Tensor]) -> bool:
    def program(x: Tensor, index: Tensor) -> list[Tensor]:
        return [operator(x, index)]

    inputs = (TABLE, torch.tensor(INDICES["good"]))
    compiled = build(traced(program, *inputs), inputs, "inductor", "torch").run
    for index in map(torch.tensor, INDICES.values()):
        ours, theirs = outcome(compiled, TABLE, index), outcome(program, TABLE, index)
        if ours is None or theirs is None:
            if ours is not theirs:
                return False
        elif not torch.equal(ours, theirs):
            return False
    return True


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("part", [0, 1])
def test_inductor_takes_what_torch_takes(part: int) -> None:
    assert [name for name in list(OPERATORS)[part::2] if not agrees(OPERATORS[name])] == []


def test_literals_are_left_alone() -> None:
    """Batching looks up the rows of its groups by such."""
    literal = torch.tensor([3, 0, 2])
    module = traced(lambda x: [x.index_select(0, literal.clone()), x.index_select(0, torch.tensor([1, 3]))], TABLE)
    lifted, *_ = lift_tensors(optimize(module, [TABLE]).module)
    before = lines(lifted)
    refuse_negative_indices(lifted)
    after = lines(lifted)
    assert [line for line in after if line not in before] != []
    assert sum("where" in line for line in after) == 2  # one choice, and its use
