"""Of an input of which a call writes some rows, nothing but these is read or copied, also where a step is undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache

from sgc.emit.backends.registry import registered
from sgc.emit.differentiate import trace
from sgc.emit.rollback import rolled_back_if_invalid
from tests.backends import RunGraphs
from tests.subsampled import PER_DATUM, in_store
from tests.training.programs import adam, make_svi

ROWS = 3331
"""A number that nothing else in a generated program is."""


def one_write(table: Tensor, index: Tensor, limit: Tensor) -> list[Tensor]:
    rows = table[index]
    table.index_put_((index,), rows + 1.0)
    return [rows.sum(), (rows < limit).all()]


def in_columns(table: Tensor, index: Tensor, limit: Tensor) -> list[Tensor]:
    rows = table.reshape(2, 3)[:, index]
    torch.ops.aten.index_put_.default(table.reshape(2, 3), [None, index], rows + 1.0)
    return [rows.sum(), (rows < limit).all()]


def read_afterwards(table: Tensor, index: Tensor, limit: Tensor) -> list[Tensor]:
    table.index_put_((index,), table[index] + 1.0)
    return [table.sum(), (table < limit).all()]


def written_twice(table: Tensor, index: Tensor, limit: Tensor) -> list[Tensor]:
    for shift in (0, 1):
        rows = table[index + shift]
        table.index_put_((index + shift,), rows + 1.0)
    return [rows.sum(), (rows < limit).all()]


def accumulated(table: Tensor, index: Tensor, limit: Tensor) -> list[Tensor]:
    rows = table[index]
    table.index_put_((index,), rows, accumulate=True)
    return [rows.sum(), (rows < limit).all()]


STEPS = [one_write, in_columns, read_afterwards, written_twice, accumulated]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("limit", [100.0, -100.0])
def test_a_call_that_is_not_valid_leaves_all_rows(step: Callable[..., list[Tensor]], limit: float) -> None:
    index, bound = torch.tensor([2, 0]), torch.tensor(limit)
    before = torch.arange(6.0)
    module = trace(step, [before, index, bound])
    guarded = rolled_back_if_invalid(module)
    table, expected = before.clone(), before.clone()
    with torch.no_grad():
        found, valid = guarded(table, index, bound)
        wanted, _ = module(expected, index, bound)
    assert torch.equal(found, wanted) and bool(valid) == (limit > 0)
    assert torch.equal(table, expected if valid else before) and not torch.equal(expected, before)


def of_all_rows(graph: Any, shape: tuple[int, ...]) -> list[str]:
    """The operators of a graph that make a tensor as large as the table."""
    return [
        node.target.__name__
        for node in graph.nodes
        if node.op == "call_function" and getattr(node.meta.get("val"), "shape", ()) == shape
    ]


def test_one_write_is_not_copied_for() -> None:
    examples = [torch.zeros(ROWS), torch.tensor([2, 0]), torch.tensor(1.0)]
    guarded = rolled_back_if_invalid(trace(one_write, examples))
    assert of_all_rows(guarded.graph, (ROWS,)) == ["index_put_.default"]


def model(index: Tensor) -> None:
    with pyro.plate("data", ROWS, subsample=index):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=0.01 * index)


def guide(index: Tensor) -> None:
    logit = pyro.param("logit", torch.tensor(0.1))
    with pyro.plate("data", ROWS, subsample=index):
        pyro.sample("z", dist.Bernoulli(logits=logit).expand([len(index)]), infer=PER_DATUM)


BATCH = torch.tensor([5, 3330, 17, 5])


def test_a_whole_step_writes_its_rows_alone() -> None:
    backend = RunGraphs(rewritten=True)
    with registered(backend):
        svi = make_svi(adam, program=(model, guide))
        for _ in range(3):
            svi.step(BATCH)
    # The copy is of the result of the write into the input that was written: compilers write in place.
    assert of_all_rows(backend.graphs[-1].graph, (ROWS,)) == ["index_put.default", "copy_.default"]
    assert set(in_store().nonzero().flatten().tolist()) == {5, 17, 3330}


@pytest.mark.inductor
@pytest.mark.cpu
def test_no_loop_of_what_inductor_generates_is_over_all_rows() -> None:
    with fresh_cache():
        svi = make_svi(adam, program=(model, guide))
        for _ in range(3):
            svi.step(BATCH)
        text = "\n".join(path.read_text() for path in Path(cache_dir()).rglob("*.cpp"))
    loops = [line for line in text.splitlines() if "for(" in line and str(ROWS) in line]
    assert "for(" in text and str(ROWS) in text and not loops, loops
    assert set(in_store().nonzero().flatten().tolist()) == {5, 17, 3330}
