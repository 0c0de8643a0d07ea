"""Small draws become pieces of one."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import sgc
from tests.emit.rewrites.graphs import apply, lines, results, traced


def test_pieces_of_one_draw() -> None:
    def f() -> list[Tensor]:
        normal = [torch.randn(3, 2) * 2, torch.randn(()) * 2, torch.randn(4) * 2]
        return [*normal, torch.rand(2) * 2, torch.rand(1) * 2]

    module = traced(f)
    assert apply("merge_draws", module, "fast")
    assert [line for line in lines(module) if "= rand" in line] == ["randn_3 = randn([11])", "rand_2 = rand([3])"]
    drawn = torch.cat([piece.flatten() for piece in results(module, seed=3)]) / 2
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.cat([torch.randn(11), torch.rand(3)]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: [torch.randn(3), torch.randn(2)],  # they are the caller's
        lambda: [torch.randn(3) + 1, torch.rand(3) + 1],  # of two laws
        lambda: [torch.randn(3) + 1, torch.randn(3, dtype=torch.float64) + 1],
        lambda: [torch.randn(3) + 1, torch.randn(5000) + 1],
        lambda: [torch.randn(3) + 1, torch.randn(0) + 1],
    ],
)
def test_which_stay(draw: Any) -> None:
    assert not apply("merge_draws", traced(draw), "fast")


def test_the_numbers_of_torch_stay() -> None:
    assert not apply("merge_draws", traced(lambda: [torch.randn(3) + 1, torch.randn(2) + 1]), "torch")


@pytest.mark.inductor
def test_a_guide_with_many_sites_draws_once() -> None:
    def model(x: Tensor) -> None:
        sites = [pyro.sample(f"z{i}", dist.Normal(0.0, 1.0).expand([i + 1]).to_event(1)) for i in range(5)]
        pyro.sample("x", dist.Normal(torch.cat(sites).sum(), 1.0), obs=x)

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="fast")
    svi = sgc.SVI(model, AutoNormal(model, init_scale=0.5), pyro.optim.SGD({"lr": 0.0}), loss)
    losses = svi.run(100_000, torch.tensor(4.0)).losses
    assert "merge_draws" in svi.profile()
    loc = torch.cat([value.flatten() for name, value in pyro.get_param_store().items() if "locs" in name])
    # In closed form; the spread of the sum is that of independent numbers.
    scale, count = torch.tensor(0.5), len(loc)
    squares = loc.square().sum() + count * scale**2 + (4.0 - loc.sum()) ** 2 + count * scale**2
    expected = 0.5 * (squares + math.log(2 * math.pi) - count) - count * scale.log()
    assert abs(losses.mean() - expected) < 4 * losses.std() / math.sqrt(len(losses))
