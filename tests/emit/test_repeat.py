"""The loop of many steps: it is so many single steps, for every kind of program, state and random operator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, fx

import sgc
import sgc.infer
from sgc.config import Rng
from sgc.emit.inductor import compile_graph
from sgc.emit.optimize.nodes import mark_literal
from sgc.emit.optimize.pipeline import optimize
from sgc.emit.repeat import CAPACITY, repeat
from sgc.emit.stepping import BuiltStep
from sgc.errors import BackendError, StandInWarning
from sgc.run import specialization
from tests.emit.optimize.test_pipeline import PROGRAMS as REWRITTEN
from tests.reference.zoo import ZOO
from tests.reference.zoo.entry import Case

PROGRAMS = [name for name in REWRITTEN if name != "sequential_particles_decaying"]  # its step runs in Python
SHARED = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
COMPILED = ("several_baselines", "batch_norm_training")
STEPS = 3


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


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[fx.GraphModule, list[Tensor]]]]:
    """The steps that are built, rewritten and not compiled, each with the tensors of its call."""
    built: list[tuple[fx.GraphModule, list[Tensor]]] = []

    def build_step(module: fx.GraphModule, tensors: Sequence[Tensor], rng: Rng) -> BuiltStep:
        examples = [tensor.detach() for tensor in tensors]
        optimized = optimize(module, examples, rng=rng)
        built.append((optimized.module, examples))
        run = torch.no_grad()(optimized.module.forward)
        return BuiltStep(optimized.module, optimized.report, examples, rng, run)

    monkeypatch.setattr(specialization, "build_step", build_step)
    yield built


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    """Unlike Adam it does not make much of the rounding of a gradient that is zero."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def step_of(
    name: str, steps: list[tuple[fx.GraphModule, list[Tensor]]], optim: Any = adam
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The rewritten step of a program, and its inputs as they are after two steps."""
    case = case_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch", **case.options)
        svi = sgc.SVI(case.model, case.guide, optim, elbo)
        for _ in range(2):
            svi.step(*case.args, **case.kwargs)
    (found,) = steps
    return found


def one_by_one(step: fx.GraphModule, inputs: list[Tensor], count: int) -> tuple[Tensor, list[Tensor]]:
    """Losses, and the inputs after so many steps from a fixed seed, the random state among them."""
    copies = [tensor.clone() for tensor in inputs]
    pyro.set_rng_seed(5)
    with torch.no_grad():
        losses = torch.stack([step(*copies)[0] for _ in range(count)])
    return losses, [*copies, torch.get_rng_state()]


def at_once(loop, inputs: list[Tensor], count: int) -> tuple[Tensor, list[Tensor]]:  # type: ignore[no-untyped-def]
    """The same by one call of the loop."""
    copies = [tensor.clone() for tensor in inputs]
    pyro.set_rng_seed(5)
    with torch.no_grad():
        losses, *others = loop(*copies, torch.tensor(count), torch.zeros(CAPACITY, dtype=torch.get_default_dtype()))
    assert all(bool(valid) is (count > 0) for valid in others)
    return losses[:count], [*copies, torch.get_rng_state()]


class _Single(torch.nn.Module):
    """The condition as torch's interpreter of the loop wants it: a tensor, where the compiler wants a tuple of one."""

    def __init__(self, condition: torch.nn.Module) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, *tensors: Tensor) -> Tensor:
        (result,) = self.condition(*tensors)
        return result


def interpreted(loop: fx.GraphModule) -> fx.GraphModule:
    loop.more = _Single(loop.more)
    return loop


@pytest.mark.parametrize("name", [*PROGRAMS, "subsampled_plate", "regression"])
def test_a_loop_is_so_many_steps(name: str, steps: list[tuple[fx.GraphModule, list[Tensor]]]) -> None:
    """Interpreted, to the last bit: losses, everything that is written, and the random state."""
    step, inputs = step_of(name, steps)
    loop = interpreted(repeat(step))
    for count in (1, STEPS):
        losses, expected = one_by_one(step, inputs, count)
        found, after = at_once(loop, inputs, count)
        assert torch.equal(found, losses)
        assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))
    unchanged, after = at_once(loop, inputs, 0)
    assert len(unchanged) == 0
    assert all(torch.equal(a, b) for a, b in zip(after, inputs, strict=False))


def test_rows_of_one_tensor_are_carried_as_one(steps: list[tuple[fx.GraphModule, list[Tensor]]]) -> None:
    step, _ = step_of("regression", steps)
    body = repeat(step).body
    assert isinstance(body, fx.GraphModule)
    written = sum(node.target is torch.ops.aten.copy_.default for node in step.graph.nodes)
    *_, output = body.graph.nodes
    carried = len(output.args[0]) - 3  # besides turn, losses and validity
    assert carried < 2 / 3 * written
    # the stack of rows that are carried together is the tensor itself
    stacks = [
        node
        for node in body.graph.nodes
        if node.target is torch.ops.aten.stack.default
        and all(operand.target is torch.ops.aten.select.int for operand in node.args[0])
        and len({operand.args[0] for operand in node.args[0]}) == 1
        and node.args[0][0].args[0].op == "placeholder"
    ]
    assert not stacks


def test_a_step_that_swaps_two_inputs(steps: list[tuple[fx.GraphModule, list[Tensor]]]) -> None:
    """Results that are inputs, one of them twice: what is carried has memory of its own."""

    def step(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        old, new = a.clone(), b + 1
        loss = (a * b).sum()
        a.copy_(b)
        b.copy_(old)
        c.copy_(new[:1].expand(2))
        return [loss]

    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.zeros(2)]
    traced = optimize(make_fx(step, tracing_mode="fake")(*inputs), inputs).module
    losses, expected = one_by_one(traced, inputs, STEPS)
    for loop in (interpreted(repeat(traced)), compile_graph(repeat(traced), _with_counters(inputs), "torch")):
        found, after = at_once(loop, inputs, STEPS)
        assert torch.equal(found, losses)
        assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_literals_that_are_views_of_one_another() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    one, other = graph.get_attr("one"), graph.get_attr("other")
    total = graph.call_function(torch.ops.aten.add.Tensor, (one, other))
    new = graph.call_function(torch.ops.aten.add.Tensor, (x, total))
    loss = graph.call_function(torch.ops.aten.sum.default, (new,))
    graph.call_function(torch.ops.aten.copy_.default, (x, new))
    graph.output([loss])
    root = torch.nn.Module()
    for name, tensor in (("one", SHARED[0]), ("other", SHARED[1])):
        mark_literal(tensor)
        root.register_buffer(name, tensor)
    inputs = [torch.tensor([0.5, 0.25])]
    step = optimize(fx.GraphModule(root, graph), inputs, skip=["fold_constants"]).module
    assert sum(node.op == "get_attr" for node in step.graph.nodes) == 2
    losses, expected = one_by_one(step, inputs, STEPS)
    found, after = at_once(compile_graph(repeat(step), _with_counters(inputs), "torch"), inputs, STEPS)
    assert torch.equal(found, losses)
    assert torch.equal(after[0], expected[0])


def test_a_loop_that_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[fx.GraphModule, list[Tensor]]]
) -> None:
    """Then each step is a call of its own, and a warning says why."""
    pyro.clear_param_store()
    case = case_of("regression")
    compiled: list[int] = []

    def compile(built: BuiltStep, steps: int) -> None:
        compiled.append(steps)
        if steps > 1:
            raise BackendError("a loop is too much")
        built._once = torch.no_grad()(built.module.forward)

    monkeypatch.setattr(BuiltStep, "compiled", property(lambda built: bool(compiled)))
    monkeypatch.setattr(BuiltStep, "compile", compile)
    svi = sgc.SVI(case.model, case.guide, adam)
    with pytest.warns(StandInWarning, match="a loop is too much"):
        assert len(svi.run(5, *case.args).losses) == 5
    assert compiled == [4, 1]


def _with_counters(inputs: list[Tensor]) -> list[Tensor]:
    return [*inputs, torch.tensor(CAPACITY), torch.zeros(CAPACITY)]


@pytest.mark.inductor
@pytest.mark.parametrize("name", [*COMPILED, "regression"])
def test_a_compiled_loop(name: str, steps: list[tuple[fx.GraphModule, list[Tensor]]]) -> None:
    step, inputs = step_of(name, steps, momentum)
    loop = compile_graph(repeat(step), _with_counters(inputs), "torch")
    for count in (1, STEPS):
        losses, expected = one_by_one(step, inputs, count)
        found, after = at_once(loop, inputs, count)
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
        for a, b in zip(after, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
def test_a_run_is_compiled_once() -> None:
    """A run compiles the loop; single steps before or after go through what is there."""
    pyro.clear_param_store()
    case = case_of("regression")
    svi = sgc.SVI(case.model, case.guide, adam)
    losses = svi.run(CAPACITY + 200, *case.args).losses
    assert losses.shape == (CAPACITY + 200,)
    assert losses[-100:].mean() < losses[:100].mean()
    (bound,) = svi._stepper._bound
    assert bound.built._many is not None
    svi.step(*case.args)
    assert bound.built._once is None
