"""What a compiled program would not do again is refused before it is done, with the line and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import sgc
from sgc.errors import CaptureError

X = torch.tensor([1.0, 2.0])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([4.0, -2.0]))
        self.register_buffer("b", torch.ones(2))
        self.inner = nn.Linear(2, 1)


Mean = Callable[[Net, Tensor, Tensor], Any]


def program(mean: Mean, net: Net) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean(net, z, x), 1.0), obs=torch.tensor(0.7))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    return model, guide


def assigns_data(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.w.data = net.w.data.clamp(min=0)
    return z * (net.w * x).sum()


def assigns_data_of_a_buffer(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.b.data = net.b * 0.5
    return z * net.b.sum()


def converts(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return z * net.double().w.float().sum()


def sets(net: Net, z: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.w.set_(torch.ones(2))
    return z * net.w.sum()


def swaps(net: Net, z: Tensor, x: Tensor) -> Tensor:
    torch.utils.swap_tensors(net.w, nn.Parameter(torch.ones(2)))
    return z * net.w.sum()


def assigns_grad(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.w.grad = torch.ones(2)
    return z * net.w.sum()


def clears_grad(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.zero_grad()
    return z * net.w.sum()


def calls_backward(net: Net, z: Tensor, x: Tensor) -> Tensor:
    (net.w * x).sum().backward()
    return z * net.w.sum()


def hooks_a_tensor(net: Net, z: Tensor, x: Tensor) -> Tensor:
    h = net.w * x
    h.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return z * h.sum()


def hooks_a_sample(net: Net, z: Tensor, x: Tensor) -> Tensor:
    z.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return z * net.w.sum()


def hooks_a_parameter(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.w.register_hook(lambda g: 2 * g)
    return z * net.w.sum()


def hooks_a_parameter_afterwards(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.w.register_post_accumulate_grad_hook(lambda p: None)
    return z * net.w.sum()


def hooks_a_function(net: Net, z: Tensor, x: Tensor) -> Tensor:
    h: Any = net.w * x
    h.grad_fn.register_hook(lambda inputs, outputs: None)
    return z * h.sum()


def hooks_saved_tensors(net: Net, z: Tensor, x: Tensor) -> Tensor:
    with saved_tensors_hooks(lambda t: 2 * t, lambda t: t):
        return z * (net.w * x).sum()


def freezes_for_a_while(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.inner.requires_grad_(False)
    h = net.inner(x).sum()
    net.inner.requires_grad_(True)
    return z * h


@pytest.mark.parametrize(
    ("mean", "line"),
    [
        (assigns_data, "net.w.data = net.w.data.clamp(min=0)"),
        (assigns_data_of_a_buffer, "net.b.data = net.b * 0.5"),
        (converts, "net.double()"),
        (sets, "net.w.set_"),
        (swaps, "torch.utils.swap_tensors"),
        (assigns_grad, "net.w.grad = torch.ones(2)"),
        (clears_grad, "net.zero_grad()"),
        (calls_backward, ".backward()"),
        (hooks_a_tensor, "h.register_hook"),
        (hooks_a_sample, "z.register_hook"),
        (hooks_a_parameter, "net.w.register_hook"),
        (hooks_a_parameter_afterwards, "net.w.register_post_accumulate_grad_hook"),
        (hooks_a_function, "h.grad_fn.register_hook"),
        (hooks_saved_tensors, "with saved_tensors_hooks"),
        (freezes_for_a_while, "net.inner.requires_grad_(False)"),
    ],
)
def test_what_goes_behind_a_capture_is_refused_and_damages_nothing(mean: Mean, line: str) -> None:
    net = Net()
    net.w.grad = torch.full((2,), 7.0)
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in net.state_dict(keep_vars=True).items()}
    model, guide = program(mean, net)
    for _ in range(2):
        with pytest.raises(CaptureError, match="would not do again") as caught:
            sgc.compile(model, guide, backend="eager")(X)
        assert line in str(caught.value) and "remedy" in str(caught.value)
    for name, tensor in net.state_dict(keep_vars=True).items():
        known, value = before[name]
        assert tensor is known and type(tensor.data) is Tensor and torch.equal(tensor, value), name
        assert tensor.requires_grad == isinstance(tensor, nn.Parameter)
    assert net.w.grad is not None and net.w.grad.tolist() == [7.0, 7.0]
    assert not net.w._backward_hooks and not net.w._post_accumulate_grad_hooks  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"]
)
def test_backward_hooks_of_a_module_that_runs_are_refused(register: str) -> None:
    net = Net()
    getattr(net.inner, register)(lambda module, *gradients: None)
    model, guide = program(lambda net, z, x: z * net.inner(x).sum(), net)
    with pytest.raises(CaptureError, match="module with a backward hook"):
        sgc.compile(model, guide, backend="eager")(X)
    model, guide = program(lambda net, z, x: z * net.w.sum(), net)
    assert sgc.compile(model, guide, backend="eager")(X).isfinite()


def frozen(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return z * net.inner.requires_grad_(False)(x).sum()


def offloaded(net: Net, z: Tensor, x: Tensor) -> Tensor:
    with save_on_cpu():
        return z * (net.w * x).sum()


def checkpointed(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return checkpoint(net.inner, z * x, use_reentrant=False).sum()


def checkpointed_reentrantly(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return checkpoint(lambda h: nn.functional.dropout(net.inner(h)), z * x, use_reentrant=True).sum()


@torch.library.custom_op("sgc_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


twice.register_fake(torch.empty_like)
twice.register_autograd(lambda ctx, gradient: 2 * gradient)


class Wrapping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return twice(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 3 * gradients[0]


def wrapped(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return z * Wrapping.apply(net.w * x).sum()


def moved_to_where_it_is(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return z * net.to(x.device).float().inner(x).sum()


def derived(net: Net, z: Tensor, x: Tensor) -> Tensor:
    once = torch.autograd.grad((z**2 * net.w**2).sum(), [net.w, z])  # has no gradient of its own
    again = torch.autograd.grad((net.w**3).sum(), net.w, create_graph=True)[0]
    return z + once[0].sum() + once[1] + again.sum()


def read_as_numbers(net: Net, z: Tensor, x: Tensor) -> Tensor:
    end = x.long()[1]
    parts = net.w.narrow(0, end - 2, 1), torch.tensor_split(net.w, x.long()[:1])[0], torch.arange(x[0], x[1])
    return z * torch.cat(parts).sum() + z.new_tensor([z, end]).sum()


def clamped(net: Net, z: Tensor, x: Tensor) -> Tensor:
    net.w.data.clamp_(min=1)
    return z * (net.w * x).sum()


def hooked_outside(net: Net, z: Tensor, x: Tensor) -> Tensor:
    return z * (net.w * x).sum()


@pytest.mark.parametrize(
    "mean",
    [
        frozen,
        offloaded,
        checkpointed,
        checkpointed_reentrantly,
        wrapped,
        derived,
        moved_to_where_it_is,
        read_as_numbers,
        clamped,
        hooked_outside,
    ],
)
def test_what_changes_no_number_or_can_be_repeated_is_not(mean: Mean) -> None:
    def prepare(net: Net) -> None:
        net.w.register_hook(lambda g: 2 * g)
        net.inner.weight.grad = torch.zeros_like(net.inner.weight)

    compare(mean, prepare=prepare)


def compare(
    mean: Mean, *, prepare: Callable[[Net], Any] = lambda net: None, backend: Any = "eager", **near: float
) -> None:
    """Loss and gradients of two calls, against Pyro's; the gradients as near as is said."""
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = Net()
        prepare(net)
        model, guide = program(mean, net)
        loss_module = sgc.compile(model, guide, backend=backend, rng="torch") if compiled else None
        losses = []
        for seed in range(2):
            pyro.set_rng_seed(seed)
            if loss_module is None:
                losses.append(pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, X))
            else:
                loss = loss_module(X)
                loss.backward()
                losses.append(loss.item())
        parameters = [*net.parameters(), pyro.get_param_store()._params["loc"]]
        found.append((torch.tensor(losses), [p.grad for p in parameters if p.grad is not None]))
    (expected, gradients), (losses, own) = found
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(own, gradients, **near)


def half(net: Net, z: Tensor, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = net.inner(z * x)
        with torch.autocast("cpu", enabled=False):
            h = h.float() * (net.w @ x)
    return h.sum() + net.w @ x


def reading_half(net: Net, z: Tensor, x: Tensor) -> Tensor:
    before = net.b / 3 @ x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scale = float(net.b / 3 @ x) + float(before)
    return z * net.w.sum() * (scale + float(net.b / 3 @ x))


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize("mean", [half, reading_half])
def test_autocast_in_a_program_is_followed(mean: Mean, backend: Any) -> None:
    # A sum of gradients that is taken in another order is rounded otherwise: in 8 bits.
    compare(mean, backend=backend, **({} if backend == "eager" else {"rtol": 0.01, "atol": 0.0}))
    net = Net()
    module = sgc.compile(*program(mean, net), backend=backend)
    for _ in range(3):
        module(X)
    assert len(module.specializations) == 1 and not torch.is_autocast_enabled("cpu")
