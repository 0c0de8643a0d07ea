"""Observed flows: sgc does not go on with what a transform's cache keeps of an earlier run, nor does ``verify``."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.tracing.prototype import preserved_state

FLOWS: dict[str, Callable[[], list[T.Transform]]] = {
    "one": lambda: [T.affine_autoregressive(2, hidden_dims=[3])],
    "two": lambda: [*T.iterated(2, T.affine_autoregressive, 2, hidden_dims=[3]).parts],
    "composed": lambda: [T.iterated(2, T.affine_coupling, 2, hidden_dims=[3])],
    "inverse": lambda: [T.affine_autoregressive(2, hidden_dims=[3]).inv],
    "of plain numbers": lambda: [T.affine_autoregressive(2, hidden_dims=[3]), T.AffineTransform(torch.ones(2), 2.0)],
}


def program(flow: list[T.Transform]) -> tuple[Callable[..., None], Callable[..., None]]:
    modules = nn.ModuleList(part for part in parts(flow) if isinstance(part, nn.Module))

    def model(x: Tensor) -> None:
        pyro.module("flow", modules)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            base = dist.Normal(mean.expand(2), 1.0).to_event(1)
            pyro.sample("x", dist.TransformedDistribution(base, flow), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))

    return model, guide


def parts(flow: list[T.Transform]) -> list[T.Transform]:
    return [part._inv if type(part).__name__ == "_InverseTransform" else part for part in flow]


@pytest.mark.parametrize("flow", FLOWS)
def test_an_observed_flow_trains_and_is_verified(flow: str) -> None:
    pyro.set_rng_seed(0)
    model, guide = program(FLOWS[flow]())
    x = torch.randn(5, 2)
    svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), sgc.infer.TraceGraph_ELBO())
    assert svi.loss_module.verify(x)
    for _ in range(3):
        svi.step(x)
    # By Pyro alone the second step raises, for want of clear_cache().
    assert svi.loss_module.verify(x)
    assert svi.loss_module.verify(x)


def test_a_buffer_that_no_run_changes_keeps_what_autograd_knows_of_it() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.ones(2))
    module.register_buffer("count", torch.zeros(2))
    module.register_buffer("hidden", torch.zeros(2))
    mask, count, hidden = module.mask, module.count, module.hidden
    weight = torch.ones(2, requires_grad=True)
    product = (weight * mask).sum()
    with preserved_state([module]):
        count.add_(1)
        hidden.data.add_(1)  # which autograd's version does not tell
    assert count.tolist() == hidden.tolist() == [0, 0]
    product.backward()  # raises if mask was written, be it the same
    assert weight.grad is not None and weight.grad.tolist() == [1, 1]
