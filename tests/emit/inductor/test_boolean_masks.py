"""Boolean values under a condition, of numbers of every width, in loops with vectors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sgc
from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph

DTYPES = (
    torch.float64,
    torch.int64,
    torch.float32,
    torch.int32,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.int8,
)


@pytest.mark.inductor
@pytest.mark.cpu
@pytest.mark.parametrize("of_one_type", [False, True])
def test_concatenations_and_paddings(of_one_type: bool) -> None:
    """Of comparisons, whose operands are looked up where they are used, and of what is chosen by them."""

    def program(x: Tensor) -> list[Tensor]:
        found = []
        for number, dtype in enumerate(DTYPES):
            other = dtype if of_one_type else DTYPES[(number + 1) % len(DTYPES)]
            y, z = x.to(dtype), x.flip(0).to(other)
            signs = torch.cat([y <= 1, z > 2, (y == 3) | ~(z < 2)])
            chosen = torch.cat([torch.where(y <= 1, y, y + 1), y - 1, y * 2])
            padded = F.pad(y > 1, (1, 2), value=True)
            found += [signs & (chosen > 2), torch.where(signs, chosen, -chosen), padded, padded.sum(0)]
            found += [signs.any(0), signs.all(0), (signs ^ (chosen > 0)).to(other), signs.double().sum()]
        return found

    x = (torch.arange(20.0)[:, None] * torch.arange(1, 44)) % 5
    compiled = compile_graph(trace(program, [x]), [x], "torch")
    torch.testing.assert_close(list(compiled(x)), program(x))


@pytest.mark.inductor
@pytest.mark.cpu
def test_a_program_of_float64() -> None:
    """Where draws of several sites are compared, as particles are, and stacked."""
    torch.set_default_dtype(torch.float64)
    data = torch.linspace(-1, 1, 60).reshape(12, 5)

    def model(data: Tensor) -> None:
        with pyro.plate("columns", 5, dim=-1), pyro.plate("rows", 12, dim=-2):
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
            k = pyro.sample("k", dist.Categorical(torch.ones(4)))
            signs = torch.cat([a > 1, (k > 1).expand(a.shape), a.exp() < 3], -1)
            pyro.sample("x", dist.Normal(F.pad(signs, (1, 0)).double().sum(-1, keepdim=True), 1.0), obs=data)

    def guide(data: Tensor) -> None:
        with pyro.plate("columns", 5, dim=-1), pyro.plate("rows", 12, dim=-2):
            pyro.sample("a", dist.Gamma(pyro.param("shape", torch.full((12, 5), 2.0)), 1.0))
            pyro.sample("k", dist.Categorical(pyro.param("probs", torch.full((12, 5, 4), 0.25))))

    found = []
    for elbo in (sgc.infer.TraceGraph_ELBO, pyro.infer.TraceGraph_ELBO):
        own = {"backend": "inductor", "rng": "torch"} if elbo is sgc.infer.TraceGraph_ELBO else {}
        loss = elbo(num_particles=4, vectorize_particles=True, max_plate_nesting=2, **own)
        loss.loss_and_grads(model, guide, data)
        pyro.set_rng_seed(0)
        found.append(loss.loss_and_grads(model, guide, data))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
