"""Parameters that lie in the memory of data or buffers are trained as eager Pyro trains them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer
from sgc.errors import CaptureError, StandInWarning

STEPS = 7


class Net(nn.Module):
    """A model and a guide, whose parameters both read the data."""

    def __init__(self, weight: Tensor, shift: Tensor, offset: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(weight), nn.Parameter(shift)
        self.register_buffer("offset", offset)

    def model(self, x: Tensor) -> None:
        pyro.module("net", self)
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        loc = z * self.weight.sum() + (0.0 if self.offset is None else self.offset)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[:3])

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.shift + x[:3], 1.0).to_event(1))


Program = tuple[Net, Callable[[int], Tensor]]
"""A net, and the data of the step of a number."""


def data_in_a_parameter() -> Program:
    net = Net(torch.ones(4), torch.zeros(3))
    return net, lambda step: net.weight.detach()[:3]


def data_in_a_parameter_at_times() -> Program:
    net = Net(torch.ones(4), torch.zeros(3))
    return net, lambda step: net.weight.detach()[1:] if step % 3 == 2 else torch.full((3,), 0.7)


def parameters_in_data() -> Program:
    data = torch.ones(6)
    net = Net(data[1:4], data[4:])
    net.shift = nn.Parameter(data[3:])
    return net, lambda step: data


def a_buffer_in_a_parameter() -> Program:
    data = torch.ones(6)
    return Net(data[:4], torch.zeros(3), data[1:4]), lambda step: torch.ones(3)


def pieces_of_one_memory() -> Program:
    data = torch.ones(9)
    return Net(data[:3], data[3:6]), lambda step: data[6:]


def trained(make: Callable[[], Program], elbo: Any) -> tuple[list[float], list[Tensor], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    net, data = make()
    svi_of = sgc.SVI if isinstance(elbo, sgc.infer.TraceGraph_ELBO) else pyro.infer.SVI
    svi = svi_of(net.model, net.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    losses = [svi.step(data(step)) for step in range(STEPS)]
    return losses, [net.weight.detach().clone(), net.shift.detach().clone()], svi


@pytest.mark.cpu
@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.inductor), "eager"])
@pytest.mark.parametrize(
    ("make", "one_memory"),
    [
        (data_in_a_parameter, True),
        (data_in_a_parameter_at_times, True),
        (parameters_in_data, True),
        (a_buffer_in_a_parameter, True),
        (pieces_of_one_memory, False),
    ],
)
def test_parameters_in_memory_that_others_read(make: Callable[[], Program], one_memory: bool, backend: str) -> None:
    losses, parameters, _ = trained(make, pyro.infer.TraceGraph_ELBO())
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        ours, found, svi = trained(make, sgc.infer.TraceGraph_ELBO(backend=backend))
    assert ours == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found, parameters, rtol=1e-4, atol=1e-4)
    said = [str(one.message) for one in given if issubclass(one.category, StandInWarning)]
    assert any("share memory" in text for text in said) is (one_memory and backend == "inductor")
    if backend == "inductor":
        assert svi._stepper.compiled.built == (make in (data_in_a_parameter_at_times, pieces_of_one_memory))


@pytest.mark.cpu
def test_minibatches_of_any_size_of_which_some_lie_in_a_parameter(uncompiled: None) -> None:
    def losses(elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = Net(torch.ones(8), torch.zeros(3))
        svi_of = sgc.SVI if isinstance(elbo, sgc.infer.TraceGraph_ELBO) else pyro.infer.SVI
        svi = svi_of(net.model, net.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        found = []
        for step, size in enumerate((3, 4, 5, 6, 5, 7, 5, 4, 6)):
            found.append(svi.step(net.weight.detach()[:size] if step % 4 == 3 else torch.full((size,), 0.7)))
        return found

    expected = losses(pyro.infer.TraceGraph_ELBO())
    with pytest.warns(StandInWarning, match="share memory"):
        assert losses(sgc.infer.TraceGraph_ELBO(backend="inductor")) == pytest.approx(expected, rel=1e-4)


@pytest.mark.cpu
def test_an_argument_that_is_written_where_a_buffer_lies(uncompiled: None) -> None:
    """It is so from a step on that is known to be like the one before."""
    data = torch.arange(6.0) * 0.1

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("part", data[2:5])

        def model(self, x: Tensor) -> None:
            x.add_(0.1)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * self.part.sum(), 1.0), obs=x.sum())

        def guide(self, x: Tensor) -> None:
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))

    def losses(elbo: Any, steps: int) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        data.copy_(torch.arange(6.0) * 0.1)
        net = Reading()
        svi_of = sgc.SVI if isinstance(elbo, sgc.infer.TraceGraph_ELBO) else pyro.infer.SVI
        svi = svi_of(net.model, net.guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        return [svi.step(torch.full((2,), 0.2) if step < 5 else data[1:3]) for step in range(steps)]

    expected = losses(pyro.infer.TraceGraph_ELBO(), 7)
    assert losses(sgc.infer.TraceGraph_ELBO(backend="eager"), 7) == pytest.approx(expected, rel=1e-5)
    assert losses(sgc.infer.TraceGraph_ELBO(backend="inductor"), 5) == pytest.approx(expected[:5], rel=1e-5)
    with pytest.raises(CaptureError, match=r"the program writes into args\[0\]"):
        losses(sgc.infer.TraceGraph_ELBO(backend="inductor"), 6)
    assert pyro.param("m").isfinite()
    assert data.tolist() == pytest.approx([0.1 * i for i in range(6)])


def test_a_run_looks_at_the_argument_that_the_program_counts_in_and_branches_on(uncompiled: None) -> None:
    def model(x: Tensor, count: Tensor) -> None:
        count.add_(1.0)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0 if count < 20 else 0.1), obs=x)

    def guide(x: Tensor, count: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))

    def losses(elbo: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optim, arguments = pyro.optim.Adam({"lr": 0.01}), (torch.tensor(0.7), torch.zeros(()))
        if not isinstance(elbo, sgc.infer.TraceGraph_ELBO):
            svi = pyro.infer.SVI(model, guide, optim, elbo)
            return [svi.step(*arguments) for _ in range(40)]
        return list(sgc.SVI(model, guide, optim, elbo).run(40, *arguments).losses.tolist())

    expected = losses(pyro.infer.TraceGraph_ELBO())
    assert losses(sgc.infer.TraceGraph_ELBO(backend="inductor")) == pytest.approx(expected, rel=1e-4)
