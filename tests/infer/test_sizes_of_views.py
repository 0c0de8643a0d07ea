"""Minibatches that are views of larger tensors, whose strides do not follow from their sizes."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

import sgc
from tests.infer.test_symbolic_sizes import Program as OfSize
from tests.infer.test_symbolic_sizes import fresh as fresh  # a fixture
from tests.infer.test_symbolic_sizes import of_pyro, of_sgc

DATA = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
VIEWS: dict[str, Callable[[int], Tensor]] = {
    "columns": lambda n: DATA[:, n : 2 * n],
    "every third column": lambda n: DATA[:, : 3 * n : 3],
    "columns, every other row": lambda n: DATA[::2, :n],
    "rows of a transposed table": lambda n: DATA.t()[n : 2 * n].t(),
    "columns of a larger table": lambda n: torch.cat([DATA, DATA], 1)[:, :60][:, n : 2 * n],
    "columns of slices": lambda n: torch.stack([DATA, 2 * DATA])[:, 1, None, :n].transpose(0, 1)[0],
    "a row, repeated": lambda n: DATA[0, :n].expand(3, n),
}


class Columns(OfSize):
    """The columns are subsampled, the rows are not."""

    def __init__(self, view: Callable[[int], Tensor]) -> None:
        self._view = view

    def arguments(self, n: int) -> tuple[Tensor, ...]:
        return (self._view(n),)

    def model(self, x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 40, subsample_size=x.shape[1]):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            for time, row in enumerate(x):
                pyro.sample(f"x_{time}", dist.Normal(z, 1.0), obs=row)

    def guide(self, x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0))
        with pyro.plate("columns", 40, subsample_size=x.shape[1]):
            pyro.sample("z", dist.Normal(x.mean(0), 1.0))


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "eager") for name in VIEWS), pytest.param("columns", "inductor", marks=pytest.mark.inductor)],
)
def test_views_of_any_size(name: str, backend: str) -> None:
    values, made = of_sgc(Columns(VIEWS[name]), backend)
    assert values == pytest.approx(of_pyro(Columns(VIEWS[name])), rel=1e-4, abs=1e-5)
    assert made == 2


def test_a_view_with_other_strides_is_a_version_of_its_own() -> None:
    program = Columns(VIEWS["columns"])
    loss_module = sgc.compile(program.model, program.guide, backend="eager")
    for n in (6, 4, 7):
        loss_module(DATA[:, :n])
    assert len(loss_module.specializations) == 2
    loss_module(DATA[:, :7].contiguous())
    assert len(loss_module.specializations) == 3
    assert "the strides of a tensor are [7, 1], not [30, 1]" in str(loss_module.misses())
