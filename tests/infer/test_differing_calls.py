"""Programs that differ at each call: what would be compiled for one call alone is run by eager Pyro."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc.infer
from sgc.errors import NanLossError, RespecializationWarning, StandInWarning

LENGTHS = random.Random(0).sample(range(1, 25), 16)


@pytest.fixture(autouse=True)
def _no_respecialization_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RespecializationWarning)
        yield


def walk(data: Tensor, scale: float = 1.0) -> None:
    """A loop over time, as long as the data."""
    state = pyro.sample("start", dist.Normal(0.0, 1.0))
    drift = pyro.param("drift", torch.tensor(0.1))
    for time in range(len(data)):
        state = state * 0.5 + drift
        pyro.sample(f"x_{time}", dist.Normal(state, scale), obs=data[time])


def walk_guide(data: Tensor, scale: float = 1.0) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("start", dist.Normal(loc, pyro.param("width", torch.tensor(0.7), constraint=dist.constraints.positive)))


def adam() -> Any:
    return pyro.optim.Adam({"lr": 0.01})


def trained(steps: Callable[[Any], list[float]]) -> tuple[list[float], dict[str, Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    losses = steps(None)
    return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def theirs(calls: list[tuple[Any, ...]]) -> tuple[list[float], dict[str, Tensor]]:
    def steps(_: Any) -> list[float]:
        svi = pyro.infer.SVI(walk, walk_guide, adam(), pyro.infer.TraceGraph_ELBO())
        return [svi.step(*call) for call in calls]

    return trained(steps)


def agree(ours: tuple[list[float], dict[str, Tensor]], expected: tuple[list[float], dict[str, Tensor]]) -> None:
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(expected[0]), rtol=1e-4, atol=1e-4)
    for name, value in expected[1].items():
        torch.testing.assert_close(ours[1][name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", [adam, lambda: lambda parameters: torch.optim.Adam(parameters, lr=0.01)])
@pytest.mark.parametrize("by_run", [False, True])
def test_steps_of_other_lengths_each(optimizer: Callable[[], Any], by_run: bool) -> None:
    calls = [(torch.linspace(0, 1, length),) for length in LENGTHS]
    svis = []

    def steps(_: Any) -> list[float]:
        svi = sgc.infer.SVI(walk, walk_guide, optimizer(), sgc.infer.TraceGraph_ELBO(backend="eager"))
        svis.append(svi)
        if by_run:
            return list(svi.run(calls).losses.tolist())
        return [svi.step(*call) for call in calls]

    with pytest.warns(StandInWarning, match="differs from call to call") as caught:
        ours = trained(steps)
    assert len([one for one in caught if one.category is StandInWarning]) == 1
    agree(ours, theirs(calls))
    assert len(svis[0].loss_module.specializations) <= 6


def test_what_comes_again_is_compiled() -> None:
    """Seven lengths that come again and again are all compiled after some rounds."""
    calls = [(torch.linspace(0, 1, length),) for length in range(1, 8)]
    svi = sgc.infer.SVI(walk, walk_guide, adam(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    with pytest.warns(StandInWarning):
        for _ in range(5):
            for call in calls:
                svi.step(*call)
    known = len(svi.loss_module.misses())
    for call in calls:
        svi.step(*call)
    assert len(svi.loss_module.specializations) == len(calls)
    assert len(svi.loss_module.misses()) == known


def test_a_beginning_that_does_not_come_again() -> None:
    """After unlike calls at the start, the one that stays is compiled."""
    svi = sgc.infer.SVI(walk, walk_guide, adam(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    with pytest.warns(StandInWarning):
        for length in (1, 2, 3, *[6] * 10):
            svi.step(torch.linspace(0, 1, length))
    data = torch.linspace(0, 1, 6)
    kept = svi.loss_module.specializations
    svi.step(data)
    assert svi.loss_module.specializations == kept
    assert svi.loss_module.specialization_for(data)[0] in kept


def test_numbers_tensors_and_sizes_that_become_inputs_are_no_reason() -> None:
    def model(data: Tensor, weight: float, rate: float) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(data)), pyro.poutine.scale(scale=weight):
            pyro.sample("x", dist.Normal(z * rate, 1.0), obs=data)

    def guide(data: Tensor, weight: float, rate: float) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    svi = sgc.infer.SVI(model, guide, adam(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", StandInWarning)
        for step in range(30):
            svi.step(torch.zeros(3 + step % 7), 0.1 + step / 30, 1.0 - step / 60)


def test_parameters_that_appear_later_are_trained() -> None:
    """A length that Pyro runs asks for a parameter that no other has: a torch optimizer is given it as well."""

    def model(data: Tensor) -> None:
        loc = pyro.param(f"loc_{len(data)}", torch.tensor(1.0))
        for time in range(len(data)):
            pyro.sample(f"x_{time}", dist.Normal(loc, 1.0), obs=data[time])

    def guide(data: Tensor) -> None:
        pass

    elbo = sgc.infer.TraceGraph_ELBO(backend="eager")
    svi = sgc.infer.SVI(model, guide, lambda parameters: torch.optim.SGD(parameters, lr=0.01), elbo)
    with pytest.warns(StandInWarning):
        for length in range(1, 9):
            svi.step(torch.zeros(length))
    for length in range(2, 9):  # the gradient is the sum of the residuals
        assert pyro.param(f"loc_{length}").item() == pytest.approx(1.0 - 0.01 * length)
    assert {f"param_store.loc_{length}" for length in range(1, 9)} <= dict(svi.loss_module.named_parameters()).keys()


def test_losses_alone_and_gradients() -> None:
    elbo, reference = sgc.infer.TraceGraph_ELBO(backend="eager"), pyro.infer.TraceGraph_ELBO()
    with pytest.warns(StandInWarning):
        for position, length in enumerate(LENGTHS[:9]):
            data, compute = torch.linspace(0, 1, length), ("loss", "loss_and_grads")[position % 2]
            values, gradients = [], []
            for one in (elbo, reference):
                pyro.set_rng_seed(length)
                values.append(getattr(one, compute)(walk, walk_guide, data))
                parameters = [*pyro.get_param_store().named_parameters()]
                gradients.append([p.grad for _, p in parameters])
                for _, parameter in parameters:
                    parameter.grad = None
            assert values[0] == pytest.approx(values[1], rel=1e-5)
            for ours, expected in zip(*gradients, strict=True):
                assert (ours is None) == (expected is None)
                if expected is not None:
                    torch.testing.assert_close(ours, expected)


def test_decaying_averages_go_on_being_captured() -> None:
    """Each length has averages of its own, which Pyro's would not be."""

    def model(data: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        for time in range(len(data)):
            pyro.sample(f"x_{time}", dist.Normal(z, 1.0), obs=data[time])

    def guide(data: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(0.0))
        pyro.sample("z", dist.Bernoulli(logits=logit), infer={"baseline": {"use_decaying_avg_baseline": True}})

    svi = sgc.infer.SVI(model, guide, adam(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", StandInWarning)
        for length in range(1, 11):
            svi.step(torch.zeros(length))
    assert len(svi.loss_module.specializations) == 10


def test_compile_captures_each() -> None:
    """``sgc.compile`` promises a compiled program, and goes on."""
    loss_module = sgc.compile(walk, walk_guide, backend="eager")
    for length in range(1, 10):
        loss_module(torch.zeros(length))
    assert len(loss_module.specializations) == 9


def test_a_call_of_pyros_that_is_nan_or_not_valid_changes_nothing() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

    counting = Counting()

    def model(data: Tensor, scale: Tensor) -> None:
        counting.norm(torch.ones(3, 1) * data[0])
        walk(data, scale)  # type: ignore[arg-type]

    def guide(data: Tensor, scale: Tensor) -> None:
        walk_guide(data)

    svi = sgc.infer.SVI(model, guide, adam(), sgc.infer.TraceGraph_ELBO(backend="eager"))
    one = torch.tensor(1.0)
    with pytest.warns(StandInWarning):
        for length in range(1, 8):
            svi.step(torch.linspace(0, 1, length), one)
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    buffers = {name: buffer.clone() for name, buffer in counting.named_buffers()}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="scale"):
        svi.step(torch.linspace(0, 1, 20), -one)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(UserWarning, match="NaN"), pyro.validation_enabled(False):
        svi.step(torch.full((21,), torch.nan), one)
    with pytest.raises(NanLossError, match="step 1"), pyro.validation_enabled(False):
        svi.run([(torch.full((22,), torch.nan), one)])
    for name, value in before.items():
        assert torch.equal(pyro.param(name), value)
    for name, buffer in counting.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
