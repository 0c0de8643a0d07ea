"""Running averages of normalising layers follow every call of the layer, whether its result is used or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
from tests.fuzz.rewritten import run_rewritten

X = torch.tensor([[1.0, 2.0], [3.0, 5.0], [4.0, 4.0]])


def in_evaluation_mode(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    return net(x)


CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "unused": lambda net, x: (net(x), x)[1],
    "for its shape": lambda net, x: x.reshape(net(x).shape),
    "before one that is used": lambda net, x: (net(x), net(2 * x))[1],
    "after one that is used": lambda net, x: (net(2 * x), net(x))[0],
    "of its own result": lambda net, x: (net(net(x)), x)[1],
    "read": lambda net, x: (net(x), x + net.running_mean)[1],
    "read before": lambda net, x: (x + net.running_mean, net(x))[0],
    "in evaluation mode": in_evaluation_mode,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(2),
    "without weights, cumulative": lambda: nn.BatchNorm1d(2, affine=False, momentum=None),
}


def outcome(layer: Callable[[], nn.Module], call: Callable[[Any, Tensor], Tensor], backend: str) -> list[Tensor]:
    """Loss, gradient and buffers after two evaluations."""
    pyro.clear_param_store()
    net = layer()

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(call(net, X + z), 1.0).to_event(2), obs=X)

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(3, 2)), 0.5).to_event(2))

    pyro.set_rng_seed(0)
    values = []
    if backend == "Pyro":
        elbo = pyro.infer.TraceGraph_ELBO()
        values = [torch.tensor(elbo.loss_and_grads(model, guide)) for _ in range(2)]
    else:
        chosen: Any = "inductor" if backend == "rewritten" else backend
        module = sgc.compile(model, guide, backend=chosen, rng="torch")
        with run_rewritten(backend == "rewritten"):
            for _ in range(2):
                values.append(module())
                values[-1].backward()
    gradient = pyro.get_param_store()._params["loc"].grad
    assert gradient is not None
    return [*(value.detach() for value in values), gradient, *net.buffers()]


@pytest.mark.parametrize("backend", ["eager", "rewritten", "torchscript"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("call", CALLS)
def test_they_are_those_of_pyro(call: str, layer: str, backend: str) -> None:
    theirs = outcome(LAYERS[layer], CALLS[call], "Pyro")
    ours = outcome(LAYERS[layer], CALLS[call], backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_averages_of_single_instances() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Unflatten(-1, (2, 1)), nn.Upsample(3), nn.InstanceNorm1d(2, track_running_stats=True))

    def call(net: nn.Module, x: Tensor) -> Tensor:
        net(x)
        return x

    torch.testing.assert_close(outcome(make, call, "eager"), outcome(make, call, "Pyro"))


def test_a_buffer_that_is_written_before_its_module_runs_is_put_back() -> None:
    """What the eager run before the capture has written is undone in full, not from where the module was entered."""
    norm = nn.BatchNorm1d(2, affine=False, momentum=None)  # type: ignore[arg-type]
    norm.running_mean.add_(2.0)  # type: ignore[union-attr]
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}

    def model(x: Tensor) -> None:
        with torch.no_grad():
            norm.running_mean.mul_(0.5)  # type: ignore[union-attr]
        norm(x)
        pyro.sample("x", dist.Normal(norm.running_mean.clone(), 1.0).to_event(1), obs=x[0])  # type: ignore[union-attr]

    def guide(x: Tensor) -> None:
        pyro.param("unused", torch.tensor(0.0))

    data = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.5, -1.0]])
    module = sgc.compile(model, guide, backend="eager").initialize(data)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    ours = [module(data).item() for _ in range(3)]
    norm.load_state_dict(before)
    theirs = [pyro.infer.TraceGraph_ELBO().loss(model, guide, data) for _ in range(3)]
    assert ours == pytest.approx(theirs)
