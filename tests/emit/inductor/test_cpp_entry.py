"""Compiled steps, called from C++: many in one call are so many single steps, and nothing goes wrong unnoticed."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

import sgc
import sgc.infer
from sgc.config import Rng
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.registry import registered
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.compiled_step import BuiltStep, build_step
from sgc.emit.inductor.cpp_entry import native_program
from sgc.errors import StandInWarning
from tests.backends import Veiled
from tests.reference.zoo import ZOO
from tests.reference.zoo.entry import Case

STEPS = 3
PAIR = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def regression() -> Case:
    """Many small parameters, whose moments are updated as rows of one tensor."""

    def model(x: Tensor) -> None:
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", 3):
            c = pyro.sample("c", dist.Normal(a, scale))
            d = pyro.sample("d", dist.Normal(b, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(c.sum() + d.sum(), 1.0), obs=x)

    return Case(model, AutoNormal(model), (torch.tensor([0.1, -0.5, 2.0, 1.5]),))


def case_of(name: str) -> Case:
    pyro.set_rng_seed(0)
    return regression() if name == "regression" else next(entry for entry in ZOO if entry.name == name).make()


class Noting(Inductor):
    """Notes the steps that are built, each with the tensors of its call; they run as they are until compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[BuiltStep, list[Tensor]]] = []

    def build_step(
        self, module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng, updated: Collection[int] = ()
    ) -> BuiltStep:
        built = super().build_step(module, tensors, rng, updated)
        self.steps.append((built, built.examples))
        built.run = torch.no_grad()(built.module.forward)
        return built


@pytest.fixture
def steps() -> Iterator[list[tuple[BuiltStep, list[Tensor]]]]:
    """The steps that are built."""
    backend = Noting()
    with registered(backend):
        yield backend.steps


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """Unlike Adam it does not make much of the rounding of a gradient that is zero."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def after(take: Callable[[list[Tensor]], Tensor], inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Losses, and the inputs after steps from a fixed seed, the random state among them."""
    copies = [tensor.clone() for tensor in inputs]
    pyro.set_rng_seed(5)
    with torch.no_grad():
        losses = take(copies)
    return losses, [*copies, torch.get_rng_state()]


def one_by_one(step: Callable[..., Sequence[Tensor]], count: int, inputs: list[Tensor]) -> Tensor:
    return torch.stack([step(*inputs)[0] for _ in range(count)])


def take(built: BuiltStep, inputs: Sequence[Tensor], steps: int) -> list[Tensor]:
    return built.bind(inputs)([], steps)


def built_of(
    function: Callable[..., list[Tensor]], inputs: list[Tensor], compile_graph: Any = compile_graph
) -> BuiltStep:
    built = build_step(make_fx(function, tracing_mode="fake")(*inputs), inputs, "torch", (), compile_graph)
    built.compile()
    return built


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["several_baselines", "batch_norm_training", "regression"])
def test_many_steps_in_one_call(name: str, steps: list[tuple[BuiltStep, list[Tensor]]]) -> None:
    """They are the steps of the module that was compiled: losses, everything that is written, the random state."""
    case = case_of(name)
    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch", **case.options)
    svi = sgc.SVI(case.model, case.guide, momentum, elbo)
    for _ in range(2):
        svi.step(*case.args, **case.kwargs)
    ((built, inputs),) = steps
    inputs = [tensor.clone() for tensor in inputs]
    built.compile()
    assert built.native is not None
    for count in (1, STEPS):
        losses, expected = after(partial(one_by_one, built.module, count), inputs)
        found, state = after(lambda copies, count=count: take(built, copies, count)[0], inputs)  # type: ignore[misc]
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
        for a, b in zip(state, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
def test_a_step_that_swaps_two_inputs() -> None:
    def step(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        old, new = a.clone(), b + 1
        loss = (a * b).sum()
        a.copy_(b)
        b.copy_(old)
        c.copy_(new[:1].expand(2))
        return [loss]

    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.zeros(2)]
    built = built_of(step, inputs)
    found, state = after(lambda copies: take(built, copies, STEPS)[0], inputs)
    losses, expected = after(partial(one_by_one, step, STEPS), inputs)
    assert torch.equal(found, losses)
    assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))


@pytest.mark.inductor
def test_literals_that_are_views_of_one_another() -> None:
    """Tensors of the module become inputs of the program."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    one, two = graph.get_attr("one"), graph.get_attr("two")
    total = graph.call_function(torch.ops.aten.add.Tensor, (one, two))
    new = graph.call_function(torch.ops.aten.add.Tensor, (x, total))
    loss = graph.call_function(torch.ops.aten.sum.default, (new,))
    graph.call_function(torch.ops.aten.copy_.default, (x, new))
    graph.output([loss])
    root = torch.nn.Module()
    for name, tensor in (("one", PAIR[0]), ("two", PAIR[1])):
        root.register_buffer(name, tensor)
    inputs = [torch.tensor([0.5, 0.25])]
    built = build_step(fx.GraphModule(root, graph), inputs, "torch")
    built.compile()
    assert built.native is not None
    assert torch.equal(take(built, inputs, STEPS)[0], torch.tensor([10.75, 20.75, 30.75]))
    assert torch.equal(inputs[0], torch.tensor([12.5, 18.25]))


@pytest.mark.inductor
def test_written_inputs_that_share_memory() -> None:
    """Torch makes one input of them: then it is asked to, once for each step."""

    def step(a: Tensor, b: Tensor) -> list[Tensor]:
        loss = (a * b).sum()
        a.add_(1)
        return [loss]

    both = torch.tensor([1.0, 2.0, 3.0])
    built = built_of(step, [both[:2], both[1:]])
    assert built.native is None
    (losses,) = take(built, [both[:2], both[1:]], STEPS)
    assert losses.tolist() == [1.0 * 2.0 + 2.0 * 3.0]
    assert both.tolist() == [2.0, 3.0, 3.0]


@pytest.mark.inductor
def test_an_operator_that_raises() -> None:
    """In the third step of ten."""

    def step(a: Tensor, b: Tensor) -> list[Tensor]:
        loss = torch.linalg.lu_factor_ex(a, check_errors=True)[0].sum()
        a.sub_(b)
        return [loss]

    a, b = torch.full((1, 1), 2.0), torch.ones(1, 1)
    built = built_of(step, [a, b])
    before = a._version
    with pytest.raises(RuntimeError, match="lu_factor"):
        take(built, [a, b], 10)
    assert a.item() == 0
    assert a._version > before


@pytest.mark.inductor
def test_an_operator_that_raises_in_python() -> None:
    """Samplers are called through Python, because of their generator."""

    def step(a: Tensor) -> list[Tensor]:
        weights = torch.where(a < 2, a + 1, torch.nan)
        a.add_(1)
        return [torch.multinomial(weights, 1).sum().float()]

    a = torch.zeros(1)
    built = built_of(step, [a])
    with pytest.raises(RuntimeError, match="probability tensor contains either"):
        take(built, [a], 10)


@pytest.mark.inductor
def test_autograd_learns_of_what_is_written() -> None:
    def step(a: Tensor, b: Tensor) -> list[Tensor]:
        with torch.no_grad():
            a.add_(b)
        return [torch.mm(a.detach(), b).sum()]

    a, b = torch.eye(2, requires_grad=True), torch.eye(2)
    built = built_of(step, [a, b])
    squared = (a * a).sum()
    (losses,) = take(built, [a, b], STEPS)
    assert losses.tolist() == [4.0, 6.0, 8.0]
    assert losses.requires_grad is False
    assert a.requires_grad and a.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


@pytest.mark.inductor
def test_threads() -> None:
    """The program lets go of Python's lock; each call has its own inputs and results."""

    def step(a: Tensor) -> list[Tensor]:
        a.add_(1)
        return [a.sum()]

    inputs = [torch.full((1000,), float(i)) for i in range(4)]
    built = built_of(step, [inputs[0]])
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        for _ in range(20):
            (results[i],) = take(built, [inputs[i]], 50)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert results[i][-1].item() == 1000 * (i + 1000)


@pytest.mark.inductor
def test_what_inductor_compiles_is_not_recognised() -> None:
    """Of another release of torch, perhaps: then each step goes through Python, and a warning says so."""

    def step(a: Tensor) -> list[Tensor]:
        a.add_(1)
        return [a.sum()]

    a = torch.zeros(2)
    built = built_of(step, [a])
    assert built.run is not None
    assert native_program(built.run, [0], [torch.float32], 1) is not None
    assert native_program(built.run, [0, 1], [torch.float32], 1) is None
    assert native_program(built.run, [0], [torch.float32], 2) is None
    assert native_program(lambda *inputs: None, [0], [torch.float32], 1) is None
    built = built_of(step, [a], Veiled)
    assert [take(built, [a], STEPS)[0].item() for _ in range(2)] == [2.0, 4.0]
    case = case_of("regression")
    svi = sgc.SVI(case.model, case.guide, momentum)
    with registered(Inductor(Veiled)), pytest.warns(StandInWarning, match="each step goes through Python"):
        assert len(svi.run(5, *case.args).losses) == 5


@pytest.mark.inductor
def test_inputs_that_stay_and_inputs_that_calls_bring() -> None:
    """What is brought is written like the rest, and is let go of."""

    def step(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        a.add_(1)
        b.add_(a)
        return [(a + b + c).sum()]

    a, c = torch.zeros(2), torch.full((2,), 10.0)
    built = built_of(step, [a, torch.zeros(2), c])
    bound = built.bind([a, None, c])
    b = torch.tensor([1.0, 2.0])
    version, gone = b._version, weakref.ref(b)
    assert bound.inputs([a, b]) == [a, b, c]
    assert list(bound.once([a, b])) == [27.0]
    assert bound([a, b], 2)[0].tolist() == [33.0, 41.0]
    assert a.tolist() == [3.0, 3.0] and b.tolist() == [7.0, 8.0] and b._version > version
    del b
    assert gone() is None
    kept = weakref.ref(c)
    del c, bound, built
    gc.collect()
    assert kept() is None


@pytest.mark.inductor
def test_autograd_learns_what_one_call_writes() -> None:
    def step(a: Tensor, b: Tensor) -> list[Tensor]:
        a.add_(b)
        return [a.sum()]

    def failing(a: Tensor, b: Tensor) -> list[Tensor]:
        loss = torch.linalg.lu_factor_ex(b, check_errors=True)[0].sum()
        a.add_(1)
        return [loss]

    a, b = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1)
    exponential, square = a.exp(), a * a
    bound = built_of(step, [a.detach(), b]).bind([a.detach(), None])
    assert list(bound.once([a, b])) == [1.0] and list(bound.once([a, b + 1])) == [3.0]
    exponential.sum().backward()  # what it needs is its own result, not a
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()
    version = a._version
    with pytest.raises(RuntimeError):
        built_of(failing, [a.detach(), b]).bind([a.detach(), None]).once([a, torch.zeros(1, 1)])
    assert a._version > version


@pytest.mark.inductor
def test_a_run_is_compiled_once() -> None:
    """Single steps and runs are calls of one program."""
    pyro.clear_param_store()
    case = case_of("regression")
    svi = sgc.SVI(case.model, case.guide, lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    losses = svi.run(1200, *case.args).losses
    assert losses.shape == (1200,)
    assert losses[-100:].mean() < losses[:100].mean()
    (bound,) = svi.stepper.compiled.bound
    assert bound.built.native is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(*case.args)
    assert [bound] == svi.stepper.compiled.bound


@pytest.mark.inductor
def test_a_loss_of_half_precision() -> None:
    def step(a: Tensor) -> list[Tensor]:
        a.add_(1)
        return [a.sum(), a.sum() > 3]

    inputs = [torch.zeros(2, dtype=torch.bfloat16)]
    built = built_of(step, inputs)
    assert built.native is not None
    assert list(built.bind(inputs).once([])) == [2.0, False]
    assert take(built, inputs, 1)[0].item() == 4.0
    assert list(built.bind(inputs).once([])) == [6.0, True]
