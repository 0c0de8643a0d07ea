"""Indices and sizes that are tensors give what they give in eager torch, and another call another entry."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

import sgc
from tests.programs import switch_guide

TABLE = torch.arange(24.0).reshape(2, 3, 4) / 10

READS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a 0-d byte is a mask": lambda x, z: TABLE[x[0].to(torch.uint8)].sum(),
    "a byte mask of two dims behind an ellipsis": lambda x, z: TABLE[..., (TABLE[0] > x[0]).to(torch.uint8)].sum(),
    "a whole number behind a byte mask": lambda x, z: TABLE[(TABLE[:, :, 0] > x[0]).to(torch.uint8), x[1].long()].sum(),
    "a number behind None and an ellipsis": lambda x, z: TABLE[None, ..., x[1].long()].sum(),
    "a number before a slice to a tensor": lambda x, z: TABLE[x[0].long(), : x[1].long()].sum(),
    "a sample behind an ellipsis": lambda x, z: TABLE[..., z.long(), :].sum(),
    "a 0-d Boolean in a tuple": lambda x, z: TABLE[x[0] > 0.5, x[1].long() - 1].sum(),
    "a tensor by keyword that is cut": lambda x, z: torch.narrow(input=TABLE, dim=1, start=x[1].long(), length=1).sum(),
    "numbers by keyword": lambda x, z: torch.tensor(data=[z, x[1]]).sum(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_an_index_is_what_it_is_in_torch(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + 0.1 * read(x, z), 1.0), obs=x[0])

    def guide(x: Tensor) -> None:
        switch_guide()

    module = sgc.compile(model, guide, backend="eager")
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = run(lambda x=x: module(x).item())  # type: ignore[misc]
            theirs = run(lambda x=x: pyro.infer.TraceGraph_ELBO().loss(model, guide, x))  # type: ignore[misc]
        assert ours == pytest.approx(theirs, rel=1e-6)


def run(loss: Callable[[], float]) -> float:
    pyro.set_rng_seed(3)
    return loss()
