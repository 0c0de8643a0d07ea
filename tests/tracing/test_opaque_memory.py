"""What an opaque call keeps and gives is its own memory, and lies there as the program was compiled for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from pyro.infer import TraceGraph_ELBO
from torch import Tensor

import sgc
from sgc.tracing.leaves.opaque_calls import OpaqueCall

NO_SIZE = torch.Size()


def number(value: float) -> Tensor:
    return torch.tensor([value, value + 0.1], requires_grad=True)


CALLS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "the density of a stable law": lambda: (
        dist.Stable(number(1.3), number(0.1), number(0.7), number(0.4)).log_prob,
        (number(0.9),),
    ),
    "a Wishart matrix": lambda: (
        dist.Wishart(torch.tensor(5.0), scale_tril=torch.diag(number(1.0))).rsample,
        (NO_SIZE,),
    ),
    "a rejection sampler": lambda: (RejectionGamma(number(1.5), number(1.2)).rsample, (NO_SIZE,)),
}


def gradients(call: OpaqueCall, shape: tuple[int, ...], *, overwritten: bool) -> list[Tensor]:
    arguments = [tensor.detach().clone() for tensor in call.tensors]
    pyro.set_rng_seed(0)
    value, token = torch.ops.sgc.opaque_taped(arguments, call.number, list(shape), call.dtype)
    assert value.shape == shape
    if overwritten:
        for argument in arguments:
            argument.fill_(0.25)
    seed = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(shape)
    return [g.clone() for g in torch.ops.sgc.opaque_vjp(seed, token, arguments)]


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CALLS)
def test_the_memory_of_its_arguments_may_be_used_again(name: str, dtype: torch.dtype) -> None:
    """Inductor makes a copy of an expanded argument for the call alone, and computes other values there afterwards."""
    torch.set_default_dtype(dtype)
    method, args = CALLS[name]()
    shape = tuple(method(*args).shape)
    call = OpaqueCall((method, args, {}), shape, dtype)
    expected = gradients(call, shape, overwritten=False)
    assert any(gradient.any() for gradient in expected)
    for mine, yours in zip(gradients(call, shape, overwritten=True), expected, strict=True):
        assert torch.equal(mine, yours)


def transposed() -> Tensor:
    return torch.linspace(0.5, 1.5, 6).reshape(3, 2).T


def turned(draw: Tensor) -> Tensor:
    """Any code of Python may give a view of its own."""
    return (2 * draw).T


RESULTS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "elementwise": lambda: (dist.VonMises(transposed(), transposed()).sample, ()),
    "accepted": lambda: (RejectionGamma(transposed() + 1, transposed()).rsample, (NO_SIZE,)),
    "a view": lambda: (turned, (torch.linspace(0.5, 1.5, 6).reshape(3, 2),)),
}


@pytest.mark.cpu
@pytest.mark.parametrize("name", RESULTS)
def test_a_result_lies_in_memory_as_the_program_is_told(name: str) -> None:
    method, args = RESULTS[name]()
    assert not method(*args).is_contiguous()
    call = OpaqueCall((method, args, {}), (2, 3), torch.float32)
    arguments = (call.tensors, call.number, [2, 3], torch.float32)
    for operator in (torch.ops.sgc.opaque.default, torch.ops.sgc.opaque_taped.default):
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")
    value, token = torch.ops.sgc.opaque_taped(*arguments)
    torch.library.opcheck(
        torch.ops.sgc.opaque_vjp.default, (torch.ones_like(value), token, call.tensors), test_utils="test_faketensor"
    )


def stable_of_float64() -> tuple[Callable[[], None], Callable[[], None]]:
    """The density, which computes in float64, keeps arguments of float64 as they are."""

    def model() -> None:
        with pyro.plate("plate", 1):
            pyro.sample("z", dist.Gumbel(torch.tensor([-1.0]), 1.0))

    def guide() -> None:
        stability = 1.2 + 0.5 * pyro.param("stability", torch.tensor(-0.4)).sigmoid()
        scale, loc = pyro.param("scale", torch.tensor(0.2)).exp(), pyro.param("loc", torch.tensor(0.5)).sin()
        with pyro.plate("plate", 1):
            pyro.sample("z", dist.Stable(stability, 0.1, scale, loc))

    return model, guide


def wishart() -> tuple[Callable[[], None], Callable[[], None]]:
    def model() -> None:
        z = pyro.sample("z", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        pyro.sample("x", dist.Normal(z.sum().sin(), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        scale, df = pyro.param("scale", torch.tensor([1.0, 2.0])), pyro.param("df", torch.tensor(0.3))
        pyro.sample("z", dist.Wishart(5 + df.exp(), scale_tril=torch.diag(scale)))

    return model, guide


def of_transposed_parameters() -> tuple[Callable[[], None], Callable[[], None]]:
    """The sample lies column by column; each is told apart from the others, and all become one row."""
    locs = torch.linspace(-1.0, 1.0, 6).reshape(3, 2)

    def model() -> None:
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.VonMises(0.0, 1.0))
        weighted = z.flatten() * torch.arange(6.0)
        pyro.sample("x", dist.Normal(weighted.sum().sin(), 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        loc = pyro.param("loc", locs.clone())
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("z", dist.VonMises(loc.T, loc.T.exp()))

    return model, guide


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
@pytest.mark.parametrize(
    ("program", "dtype"),
    [
        (stable_of_float64, torch.float64),
        (wishart, torch.float32),
        (wishart, torch.float64),
        (of_transposed_parameters, torch.float32),
    ],
)
def test_whole_programs(program: Callable[[], Any], dtype: torch.dtype, backend: str) -> None:
    torch.set_default_dtype(dtype)
    model, guide = program()
    module = sgc.compile(model, guide, backend=backend, rng="torch").initialize()
    for seed in range(2):
        module.zero_grad()
        pyro.set_rng_seed(seed)
        loss = module()
        loss.backward()
        found = [loss.detach(), *(parameter.grad.clone() for parameter in module.parameters())]  # type: ignore[union-attr]
        module.zero_grad()
        pyro.set_rng_seed(seed)
        value = TraceGraph_ELBO().loss_and_grads(model, guide)
        expected = [torch.tensor(value), *(parameter.grad for parameter in module.parameters())]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
