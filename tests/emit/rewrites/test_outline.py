"""Updates that are taken out of a step: the same numbers from fewer functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, fx

import sgc
import sgc.infer
from sgc.emit.differentiate import trace
from sgc.emit.inductor.compiled_step import BuiltStep, build_step
from sgc.emit.rewrites.outline import Outlined, settle
from sgc.graph.meta_keys import IS_GRADIENT
from sgc.training.optimizers.members import Member
from sgc.training.optimizers.update import Update
from tests.emit.rewrites.graphs import lines

Step = Callable[..., list[Tensor]]

NAN, INF = math.nan, math.inf
VALUES = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 3.0, INF, -INF, NAN, 1e-40, 3e38, -2.5, 0.1, 7.0, -0.3, 2.0, 1e-3])
"""More than fill a vector; their pairs hold everything that an operator may treat apart."""


def build(step: Step, inputs: list[Tensor], updated: Iterable[int] | None = None) -> BuiltStep:
    positions = set(range(len(inputs))) if updated is None else set(updated)
    return build_step(trace(step, inputs), inputs, "torch", positions)


def kernels(built: BuiltStep) -> int:
    return len(built.outlined.kernels) if built.outlined is not None else 0


def rest(built: BuiltStep) -> list[str]:
    assert built.outlined is not None
    return lines(built.outlined.rest)


def taken(built: BuiltStep, inputs: list[Tensor], steps: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Losses of the compiled step, and its inputs afterwards."""
    if not built.compiled:
        built.compile()
        assert built.native is not None
    copies = [tensor.detach().clone() for tensor in inputs]
    return built.bind(copies)([], steps)[0], copies


def expected(step: Step, inputs: list[Tensor], steps: int = 3) -> tuple[Tensor, list[Tensor]]:
    copies = [tensor.detach().clone() for tensor in inputs]
    with torch.no_grad():
        losses = torch.stack([step(*copies)[0] for _ in range(steps)])
    return losses, copies


def check(step: Step, inputs: list[Tensor], updated: Iterable[int] | None = None, steps: int = 3) -> BuiltStep:
    """Inputs are as after steps in eager torch: no tolerance, NaN where there is NaN, and signs of zeros too."""
    built = build(step, inputs, updated)
    (losses, found), (expected_losses, wanted) = taken(built, inputs, steps), expected(step, inputs, steps)
    torch.testing.assert_close(losses, expected_losses)
    for position, (a, b) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, i=position: f"{i}: {text}")
        assert torch.equal(torch.signbit(a).logical_and(~a.isnan()), torch.signbit(b).logical_and(~b.isnan())), position
    return built


EXACT: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "add": lambda x, y, c: x + y,
    "add number": lambda x, y, c: x + 0.1,
    "add scalar": lambda x, y, c: c + x,
    "sub": lambda x, y, c: x - y,
    "rsub": lambda x, y, c: 1 - x,
    "mul": lambda x, y, c: x * y,
    "mul scalar": lambda x, y, c: c * y,
    "div": lambda x, y, c: x / y,
    "neg": lambda x, y, c: -x,
    "abs": lambda x, y, c: x.abs(),
    "sign": lambda x, y, c: x.sign(),
    "reciprocal": lambda x, y, c: x.reciprocal(),
    "square": lambda x, y, c: x**2,
    "cube": lambda x, y, c: x**3,
    "addcdiv": lambda x, y, c: torch.addcdiv(x, x, y, value=0.3),
    "maximum": lambda x, y, c: torch.maximum(x, y),
    "minimum": lambda x, y, c: torch.minimum(x, y),
    "clamp": lambda x, y, c: x.clamp(-1, 2),
    "clamp below": lambda x, y, c: x.clamp(min=0.2),
    "clamp above": lambda x, y, c: x.clamp(max=0.2),
    "where": lambda x, y, c: torch.where(x > y, x, y),
    "where number": lambda x, y, c: torch.where(x.isnan(), 0.5, y),
    "eq": lambda x, y, c: (x == y).float(),
    "ne": lambda x, y, c: (x != 1).float(),
    "le, not": lambda x, y, c: (~(x <= y)).float(),
    "ge, and": lambda x, y, c: ((x >= 0.1) & (y < 2)).float(),
    "lt, or": lambda x, y, c: ((x < c) | torch.logical_not(y > 0)).float(),
    "double": lambda x, y, c: (x.double() * 0.1).float(),
    "full": lambda x, y, c: torch.where(x > 0, torch.full((), -INF), y),
}

ROUNDED: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "add alpha": lambda x, y, c: torch.add(x, y, alpha=-0.3),
    "sub alpha": lambda x, y, c: torch.sub(x, y, alpha=0.3),
    "sqrt": lambda x, y, c: x.sqrt(),
    "root": lambda x, y, c: x**0.5,
    "addcmul": lambda x, y, c: torch.addcmul(x, y.clamp(-9, 9), y.clamp(-9, 9), value=0.3),
    "exp": lambda x, y, c: x.exp(),
    "log": lambda x, y, c: x.log(),
    "pow": lambda x, y, c: 0.9**x,
    "pow number": lambda x, y, c: x**1.7,
    "rsqrt": lambda x, y, c: x.rsqrt(),
    "lerp": lambda x, y, c: x.lerp(y, 0.1),
    "lerp far": lambda x, y, c: x.lerp(y, 0.9),
}
"""ATen multiplies and adds in one rounding, or its vectors know other approximations than the C library."""


def of_each(operators: dict[str, Any]) -> tuple[Step, list[Tensor]]:
    """A step that updates one parameter by each operator."""
    first, second = torch.meshgrid(VALUES, VALUES, indexing="ij")
    parameters = [first.clone() for _ in operators]

    def step(*inputs: Tensor) -> list[Tensor]:
        *held, y, c = inputs
        for x, operator in zip(held, operators.values(), strict=True):
            x.copy_(operator(x.clone(), y, c))
        return [torch.zeros(())]

    return step, [*parameters, second.contiguous(), torch.tensor(0.7, dtype=torch.float64)]


@pytest.mark.inductor
def test_operators() -> None:
    """Every pair of special values; a number of another type takes part as a number of that of the tensor."""
    step, inputs = of_each(EXACT)
    built = check(step, inputs, steps=1)
    assert kernels(built) == len(EXACT)
    step, inputs = of_each(ROUNDED)
    built = build(step, inputs)
    assert kernels(built) == len(ROUNDED)
    for name, a, b in zip(ROUNDED, taken(built, inputs, 1)[1], expected(step, inputs, 1)[1], strict=False):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True, msg=lambda text, name=name: name + text)


OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, maximize=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.3),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
}


@pytest.mark.inductor
def test_optimizers() -> None:
    """All of torch's that are elementwise, five steps of each, on parameters of several shapes."""
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(3,), (2, 4), (1,), (), (0,), (5, 0), (33,)]
    parameters = [torch.randn(shape).requires_grad_() for _ in OPTIMIZERS for shape in shapes]
    optimizers = [
        make(parameters[i * len(shapes) : (i + 1) * len(shapes)]) for i, make in enumerate(OPTIMIZERS.values())
    ]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    for optimizer in optimizers:
        optimizer.step()  # it makes its state
    update = Update([Member(optimizer) for optimizer in optimizers], parameters, frozenset({"lr"}))
    count = len(parameters)

    def step(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            update(list(inputs[:count]), list(inputs[count : 2 * count]), list(inputs[2 * count :]))
        return [torch.zeros(())]

    inputs = [*parameters, *gradients, *update.state]
    built = build(step, inputs, {*range(count), *range(2 * count, len(inputs))})
    assert built.outlined is not None
    assert not any("copy_" in line for line in rest(built))
    assert count <= kernels(built) <= 2 * count  # some count steps, and make nothing of the number
    assert len(built.outlined.functions) <= 3 * len(OPTIMIZERS)  # of a tensor, of a number, of a step count alone
    _, found = taken(built, inputs, 5)
    for _ in range(5):
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(found[:count], parameters, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=2e-6, atol=1e-6)
    for a, b in zip(found[2 * count :], update.state, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


def test_the_update_begins_after_the_gradient() -> None:
    """Clipping is part of it; what is left are the loss and the gradient."""

    def step(p: Tensor, mean: Tensor, x: Tensor) -> list[Tensor]:
        gradient = x * p
        clipped = gradient.clamp(-1, 1)
        mean.lerp_(clipped, 0.1)
        p.sub_(mean)
        return [gradient.sum(), gradient]

    inputs = [torch.ones(3), torch.ones(3), torch.ones(3)]
    traced = trace(step, inputs)
    output = traced.graph.output_node()
    loss, gradient = cast("list[fx.Node]", output.args[0])
    output.args = ([loss],)
    IS_GRADIENT.put(gradient, True)
    built = build_step(traced, inputs, "torch", {0, 1})
    assert kernels(built) == 1
    assert rest(built) == ["mul = mul.Tensor(x_1, p_1)", "sum_1 = sum(mul)", "return [sum_1, mul]"]


# -- what depends on what


@pytest.mark.inductor
def test_inputs_that_depend_on_one_another() -> None:
    """They are swapped, and moved towards one another: one kernel, which reads all before it writes any."""

    def step(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
        loss = (a * b).sum() + c.sum()
        old = a.clone()
        a.copy_(b)
        b.copy_(old)
        c.add_(d, alpha=0.5)
        d.sub_(c)
        return [loss]

    inputs = [torch.randn(19, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    built = check(step, inputs)
    assert kernels(built) == 2


@pytest.mark.inductor
def test_a_gradient_that_is_another_parameter() -> None:
    """The gradient of ``(p * q).sum()`` in ``p`` is ``q``, which its own kernel has changed by then, or has not."""

    def step(p: Tensor, q: Tensor) -> list[Tensor]:
        loss = (p * q).sum()
        before = p.clone(), q.clone()
        p.sub_(0.1 * before[1])
        q.sub_(0.1 * before[0])
        return [loss]

    assert kernels(check(step, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])])) == 1


@pytest.mark.inductor
def test_a_gradient_that_is_a_view_of_another_parameter() -> None:
    """Each kernel reads a copy: the other kernel writes into what it would be a view of."""

    def step(p: Tensor, q: Tensor) -> list[Tensor]:
        loss = (p.view(4) * q).sum()
        before = p.clone(), q.clone()
        p.sub_(0.1 * before[1].view(2, 2))
        q.sub_(0.1 * before[0].view(4))
        return [loss]

    built = check(step, [torch.tensor([[1.0, 2.0], [0.5, 3.0]]), torch.tensor([3.0, -1.0, 2.0, 1.0])])
    assert kernels(built) == 2
    assert sum("clone" in line for line in rest(built)[:-1]) == 2


@pytest.mark.inductor
def test_a_kernel_reads_what_the_rest_writes() -> None:
    """As it was before."""

    def step(p: Tensor, count: Tensor, ratio: Tensor) -> list[Tensor]:
        loss = p.sum()
        p.add_(count).mul_(ratio)
        count.add_(loss.sign())
        ratio.copy_(torch.cumsum(ratio, 0))
        return [loss]

    inputs = [torch.ones(3), torch.tensor(2.0), torch.tensor([1.0, 0.5, 0.25])]
    built = check(step, inputs, {0})
    assert kernels(built) == 1


@pytest.mark.inductor
def test_a_value_that_kernels_and_the_loss_share() -> None:
    """It is computed once, in the rest; one that the rest returns already is returned once."""

    def step(p: Tensor, q: Tensor, x: Tensor) -> list[Tensor]:
        gradient = torch.cumsum(x * p, 0)
        loss = gradient.sum()
        p.sub_(gradient)
        q.sub_(gradient * loss)
        return [loss]

    inputs = [torch.ones(5), torch.zeros(5), torch.linspace(0, 1, 5)]
    built = check(step, inputs)
    assert kernels(built) == 2
    assert rest(built)[-1] == "return [sum_1, cumsum]"


@pytest.mark.inductor
def test_what_stays() -> None:
    """What is no arithmetic element by element, or does not lie in memory in the order of its elements."""

    def step(*inputs: Tensor) -> list[Tensor]:
        row, sorted_, transposed, view, mask, kept = inputs
        loss = row.sum()
        row.copy_(row * kept - kept.sum())
        sorted_.copy_(torch.cumsum(sorted_, 0))
        transposed.mul_(2)
        view.copy_(view * torch.ones(4).cumsum(0))
        mask.masked_fill_(mask > 1, 0)
        kept.add_(1)
        return [loss]

    inputs = [torch.ones(3), torch.ones(3), torch.ones(2, 3).t(), torch.ones(3, 4), torch.arange(3.0), torch.ones(3)]
    inputs[2] = torch.arange(6.0).view(2, 3).t()
    built = build(step, inputs)
    assert built.outlined is not None
    held = [operand for kernel in built.outlined.kernels for operand in kernel.operands]
    assert set(held) & set(range(6)) == {0, 5}
    check(step, inputs)


@pytest.mark.inductor
def test_a_large_tensor_is_shared_by_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:

        def step(p: Tensor, count: Tensor, x: Tensor) -> list[Tensor]:
            count.add_(1)
            p.add_(x / count)
            return [count.clone()]

        inputs = [torch.zeros(400, 301), torch.zeros(()), torch.arange(400.0 * 301).view(400, 301)]
        assert kernels(check(step, inputs)) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.inductor
def test_a_number_that_stays_the_same_is_computed_once() -> None:
    """Its inputs tell, to the last bit: the sign of a zero, and a NaN, which is equal to nothing."""

    def step(p: Tensor, a: Tensor, q: Tensor, b: Tensor) -> list[Tensor]:
        p.copy_(p + a.reciprocal() ** 3)
        q.copy_(q + b.reciprocal() ** 3)
        return [torch.zeros(())]

    def inputs(a: float, b: float) -> list[Tensor]:
        return [torch.ones(3), torch.tensor(a), torch.ones(2), torch.tensor(b)]

    built = build(step, inputs(1.0, 2.0), {0, 2})
    assert built.outlined is not None
    assert len(built.outlined.functions) == 1
    for a, b in [(1.0, 2.0), (2.0, 2.0), (0.0, -0.0), (-0.0, 0.0), (NAN, 1.0), (NAN, NAN), (1.0, NAN)]:
        given = inputs(a, b)
        found, wanted = taken(built, given), expected(step, given)
        for one, other in zip(found[1], wanted[1], strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_what_kernels_read_lies_in_order_in_memory_of_its_own() -> None:
    """Whatever passes have made of it: a row of a transposed packet, a view of an input."""

    def rest(x: Tensor, w: Tensor) -> list[Tensor]:
        both = torch.stack([x, w]).exp()
        results = [both.sum(), both.permute(0, 2, 1)[0], x.t(), both[1]]
        w.copy_(w + 1)
        return results

    inputs = [torch.rand(3, 3), torch.rand(3, 3)]
    module = trace(rest, inputs)
    settled = settle(Outlined(module, (), ()), 1).rest
    expected, found = rest(*(t.clone() for t in inputs)), settled(*(t.clone() for t in inputs))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert all(tensor.is_contiguous() for tensor in found[1:])
    assert [line for line in lines(settled) if line.startswith("clone")] == [
        "clone = clone(select)",
        "clone_1 = clone(t)",
    ]


@pytest.mark.inductor
def test_gradients_of_weights_that_many_steps_share() -> None:
    """The gradients are sums of rows; steps are those of eager Pyro."""

    def model(x: Tensor) -> None:
        weight, bias = pyro.param("weight", torch.eye(3) / 2 + 0.1), pyro.param("bias", torch.zeros(3))
        z = torch.zeros(5, 3)
        with pyro.plate("rows", 5):
            for t in range(len(x)):
                z = torch.tanh(z @ weight.t() + bias + x[t])
                pyro.sample(f"x_{t}", dist.Normal(z @ weight, 1.0).to_event(1), obs=x[t])

    def made(svi: Any, x: Tensor) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        losses = [svi.step(x) for _ in range(4)]
        return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    x = torch.linspace(-1, 1, 90).view(6, 5, 3)
    ours = made(sgc.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), sgc.infer.TraceGraph_ELBO()), x)
    theirs = made(pyro.infer.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), TraceGraph_ELBO()), x)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, value in theirs[1].items():
        torch.testing.assert_close(ours[1][name], value, rtol=1e-4, atol=1e-5)


def test_nothing_to_take_out() -> None:
    def step(p: Tensor) -> list[Tensor]:
        p.copy_(torch.cumsum(p, 0))
        return [p.sum()]

    built = build(step, [torch.ones(3)])
    assert built.outlined is None
    assert isinstance(built.module, fx.GraphModule)
    assert "outline" in str(built.report)
