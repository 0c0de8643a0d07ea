"""In-place operators become functional ones, but for copies into inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sgc.emit.fx.module_laws import check
from sgc.emit.rewrites.functionalise import functionalise
from sgc.errors import ModuleError
from sgc.graph.meta_keys import ABOUT
from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

X, Y = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.25, 4.0])


def test_writes_into_inputs_become_copies_at_the_end() -> None:
    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        x.mul_(2.0)
        seen = x + y
        y[0] = x[1]
        return [seen, y.sum()]

    module = traced(step, X, Y)
    before = results(module, X, Y)
    with pytest.raises(ModuleError, match=r"mul_ \(aten.mul_.Tensor\) writes into x0(.|\n)*copy_"):
        check(module)
    assert apply("functionalise", module)
    assert lines(module)[0] == "mul = mul.Tensor(x0, 2.0)"
    assert [line.partition(" = ")[2] for line in lines(module)[-3:-1]] == [
        "copy_(x0, mul)",
        f"copy_(x1, {list(module.graph.nodes)[-2].args[1]})",
    ]
    assert equal(results(module, X, Y), before)
    # an optimizer's order: what was returned is the value before later writes
    assert torch.equal(before[0], 2 * X + Y)


def test_nothing_is_left_in_the_meta_that_torch_hands_on() -> None:
    """An empty entry would be handed on as well, in the place of the number of another node's draw."""

    def write(x: Tensor) -> list[Tensor]:
        whole = x.sin()
        whole[1:].mul_(2.0)
        return [whole + torch.rand(3), x.cos()]

    module = traced(write, X)
    assert apply("functionalise", module)
    assert [node.name for node in module.graph.nodes if "custom" in node.meta] == []


def test_an_attribute_that_two_nodes_read() -> None:
    def write(x: Tensor) -> list[Tensor]:
        whole, other = x.sin(), x.cos()
        whole[0] = torch.tensor(2.0)
        other[1] = whole.sum()
        other[2] = torch.tensor(2.0)
        return [whole, other]

    module = traced(write, X)
    before = results(module, X)
    first, second = module.graph.find_nodes(op="get_attr")
    second.target = first.target  # as in a program that is emitted for each of its particles
    assert apply("functionalise", module)
    module.graph.lint()
    assert equal(results(module, X), before)


def test_a_swap_of_two_inputs() -> None:
    def swap(x: Tensor, y: Tensor) -> list[Tensor]:
        old = x.clone()
        x.copy_(y)
        y.copy_(old)
        return [x - y]

    module = traced(swap, X, Y)
    assert apply("functionalise", module)
    assert equal(results(module, X, Y), [Y - X, Y, X])


def test_random_operators_keep_their_numbers_and_their_order() -> None:
    def draw(x: Tensor) -> list[Tensor]:
        a = torch.empty(3).normal_()
        b = torch.empty(3).uniform_(1.0, 2.0)
        c = torch.empty(3).exponential_()
        d = torch.empty_like(x).bernoulli_(0.5)
        a.add_(torch.bernoulli(b - 1.0))
        return [a + x, b, c, d]

    module = traced(draw, X)
    before = results(module, X, seed=3)
    assert apply("functionalise", module)
    drawn = [str(node.target) for node in module.graph.nodes if "draw" in node.name or node.target in _RANDOM]
    assert [name.split(".")[1] for name in drawn] == [
        "normal_functional",
        "uniform",
        "exponential",
        "bernoulli",
        "bernoulli",
    ]
    assert equal(results(module, X, seed=3), before)


_RANDOM = {
    torch.ops.aten.normal_functional.default,
    torch.ops.aten.uniform.default,
    torch.ops.aten.exponential.default,
    torch.ops.aten.bernoulli.p,
    torch.ops.aten.bernoulli.default,
}


def test_a_functional_form_takes_the_same_arguments() -> None:
    """``pow_.Scalar`` is ``pow.Tensor_Scalar``; ``pow.Scalar`` is another operator."""
    module = traced(lambda x: [x.abs().pow_(3).mul_(2).add_(x, alpha=2)], X)
    before = results(module, X)
    assert apply("functionalise", module)
    assert equal(results(module, X), before)


def test_names_notes_checks_and_literals_stay() -> None:
    def step(x: Tensor) -> list[Tensor]:
        torch._assert_async(x.sum() > 0, "positive")
        scaled = x * torch.tensor(2.0)
        before = scaled.sum()
        scaled.relu_()
        return [scaled.exp(), before]

    module = traced(step, X)
    for node in module.graph.nodes:
        if node.op == "call_function":
            ABOUT.put(node, f"about {node.name}")
    assert apply("functionalise", module)
    assert lines(module) == [
        "sum_1 = sum(x0)",
        "gt = gt.Scalar(sum_1, 0)",
        "_assert_async = _assert_async.msg(gt, positive)",
        "_tensor_constant0 = 2.0",
        "mul = mul.Tensor(x0, _tensor_constant0)",
        "sum_2 = sum(mul)",
        "relu = relu(mul)",
        "exp = exp(relu)",
        "return [exp, sum_2]",
    ]
    assert [ABOUT.of(node) for node in module.graph.nodes if node.op == "call_function"][-2:] == [
        "about relu_",
        "about exp",
    ]


def test_what_writes_into_its_own_memory_is_rewritten_in_place() -> None:
    """The graph is not traced anew: the other nodes are the very same."""

    def cell(x: Tensor, y: Tensor) -> list[Tensor]:
        total = (x * y).add_(y, alpha=2)
        return [total.clamp_(min=0.1).log(), (x > 0).logical_and_(y > 1)]

    module = traced(cell, X, Y)
    before = results(module, X, Y)
    kept = module.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert apply("functionalise", module)
    assert module.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor) == kept
    assert lines(module)[:3] == ["mul = mul.Tensor(x0, x1)", "add = add.Tensor(mul, x1)", "clamp = clamp(add, 0.1)"]
    assert equal(results(module, X, Y), before)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: [(product := x * y).sum(), product.add_(1)],  # read before
        lambda x, y: [(product := x * y).add_(1), product * 2],  # read afterwards
        lambda x, y: [(x * y)[0].add_(1)],  # a part of it
        lambda x, y: [(x * y).view(3, 1).add_(1)],  # under another shape
        lambda x, y: [(x * y).detach().add_(1)],  # under another name
        lambda x, y: [x.add_(y)],  # an input
        lambda x, y: [x.clone().add_(y)],
        lambda x, y: [(x * y).add_(y.double())],  # of another type than the sum
        lambda x, y: [torch.ops.aten._unsafe_view(x, [3, 1]).add_(1), x * 1],  # shares memory and does not say so
    ],
)
def test_other_writes(function: object) -> None:
    module = traced(function, X, Y)  # type: ignore[arg-type]
    before = results(module, X, Y)
    apply("functionalise", module)
    assert equal(results(module, X, Y), before)


def test_batch_norms_concealed_write_is_found() -> None:
    mean, variance = torch.zeros(2), torch.ones(2)

    def norm(x: Tensor, mean: Tensor, variance: Tensor) -> list[Tensor]:
        mean.mul_(1.0)
        out = torch.ops.aten.native_batch_norm.default(x, None, None, mean, variance, True, 0.1, 1e-5)
        return [operator.getitem(out, 0), mean + 0.5]

    x = torch.randn(4, 2)
    module = traced(norm, x, mean, variance)
    before = results(module, x, mean, variance)
    assert not torch.equal(before[-1], variance)
    assert apply("functionalise", module)
    assert equal(results(module, x, mean, variance), before)


def test_an_observed_bernoulli_stays_one_operator() -> None:
    """torch.func.functionalize would rewrite it, and round otherwise."""

    def density(x: Tensor, y: Tensor) -> list[Tensor]:
        total = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
        return [total.neg_()]

    module = traced(density, X, Y)
    assert apply("functionalise", module)
    assert len(lines(module)) == 3


def test_looks_at_factors_stay() -> None:
    """Each behind its factor; functionalisation would ask for a token that orders them."""

    def program(x: Tensor) -> list[Tensor]:
        y = x.clone()
        y[0].mul_(0.5)
        factor, inverse = torch.linalg.cholesky(y), torch.linalg.inv(y)
        x.add_(1)
        return [factor, inverse.sum()]

    good, bad = torch.eye(2), -torch.eye(2)
    module = traced(program, good)
    before = results(module, good)
    assert apply("functionalise", module)
    assert equal(results(module, good), before)
    looks = module.graph.find_nodes(op="call_function", target=torch.ops.aten._linalg_check_errors.default)
    assert [look.args[1] for look in looks] == ["linalg.cholesky", "linalg.inv"]
    with pytest.raises(torch.linalg.LinAlgError, match="cholesky"):
        module(bad)


def test_a_functional_graph_is_left_alone() -> None:
    module = traced(lambda x: [x * 2], X)
    graph = module.graph
    assert not functionalise(module) and module.graph is graph


COLUMNS = {
    "dropout": lambda x: torch.nn.functional.dropout(x, 0.3),
    "a number": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "a tensor": lambda x: torch.empty_like(x).bernoulli_(x.mean(1, keepdim=True).sigmoid()),
    "a vector": lambda x: torch.zeros_like(x).bernoulli_(x.mean(0).sigmoid()),
    "a slice": lambda x: torch.zeros(6, 10)[:, ::2].t().bernoulli_(0.3) + x,
    "more dimensions": lambda x: torch.empty(2, 1, 5, 6).permute(2, 1, 3, 0).bernoulli_(0.3) * x[:, :1, None, None],
    "rows": lambda x: torch.empty(5, 1).t().bernoulli_(0.3) + x[0, :5],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_bernoulli_numbers_are_drawn_in_the_order_of_the_memory(name: str) -> None:
    def draw(x: Tensor) -> list[Tensor]:
        return [COLUMNS[name](x), torch.rand(2)]

    x = torch.arange(30.0).view(6, 5).t()
    module = traced(draw, x)
    before = results(module, x)
    assert functionalise(module)
    module.recompile()
    assert equal(results(module, x), before)


def slices_of_one(x: Tensor, y: Tensor) -> list[Tensor]:
    whole = torch.zeros(6)
    whole[:3] = x
    whole[3:].add_(y).mul_(whole[:3])
    seen = whole[1:5] * 2
    whole[::2] += seen[:3]
    return [whole, seen]


def flat_and_square(x: Tensor, y: Tensor) -> list[Tensor]:
    square = x[:, None] * y
    square.view(-1)[::4] += 0.5
    first = square.sum()
    square.t()[0].copy_(y)
    square.view(-1)[::4] += x
    return [first, square, square.diagonal() * 2]


def views_of_inputs(x: Tensor, y: Tensor) -> list[Tensor]:
    last, row = x[2:], x.view(1, 3)
    last.mul_(y[0])
    doubled = row * 2
    row.add_(y)
    return [doubled, last, x.sum()]


def drawn_into_a_part(x: Tensor, y: Tensor) -> list[Tensor]:
    whole = torch.zeros(2, 3)
    whole[0].normal_()
    whole[1].bernoulli_(0.5)
    whole += torch.rand(3)
    return [whole * x, y]


def a_write_read_by_a_write(x: Tensor, y: Tensor) -> list[Tensor]:
    a, b = x * 2, y.clone()
    b.add_(a)
    a.copy_(b)
    b[1:].sub_(a[:2])
    return [a.mul_(b), b, x.sub_(a), y]


VIEWS = [slices_of_one, flat_and_square, views_of_inputs, drawn_into_a_part, a_write_read_by_a_write]


@pytest.mark.parametrize("program", VIEWS)
def test_writes_into_views(program: Callable[..., list[Tensor]]) -> None:
    module = traced(program, X, Y)
    before = results(module, X, Y, seed=5)
    assert apply("functionalise", module)
    assert equal(results(module, X, Y, seed=5), before)


def test_what_touches_no_written_memory_stays() -> None:
    """Only the nodes that touch it are traced: the others are the very same, in their order."""

    def program(x: Tensor, y: Tensor) -> list[Tensor]:
        apart = (x.sin() * y).exp()
        whole = torch.cat([x, y])
        whole[2:4] += apart[0]
        return [apart.log() + whole.sum(), apart.cos()]

    module = traced(program, X, Y)
    before = results(module, X, Y)
    names = ("sin", "mul", "exp", "log", "cos")
    kept = [node for node in module.graph.nodes if node.name in names]
    assert apply("functionalise", module)
    assert [node for node in module.graph.nodes if node.name in names] == kept
    assert equal(results(module, X, Y), before)


def test_an_update_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(weight: Tensor, mean: Tensor, gradient: Tensor, count: Tensor) -> list[Tensor]:
        count += 1
        mean.lerp_(gradient, 0.1)
        weight.addcdiv_(mean, (1 - 0.9**count).sqrt(), value=-0.1)
        return [weight.sum()]

    inputs = [X, Y, X * Y, torch.tensor(2.0)]
    module = traced(update, *inputs)
    before = results(module, *inputs)
    monkeypatch.delattr("sgc.emit.rewrites.functionalise.trace_fake")
    assert apply("functionalise", module)
    assert equal(results(module, *inputs), before)


def test_copies_at_the_end_are_no_writes() -> None:
    """They stay the same nodes, whatever else is written: into memory of its own, or into views."""

    def program(x: Tensor, y: Tensor) -> list[Tensor]:
        noise = torch.empty(3).normal_()
        part = torch.zeros(3)
        part[1:] += x[:2]
        result, moved = noise * 2.0, y.view(3, 1)[:, 0] + part
        x.copy_(moved)
        y.copy_(noise)
        return [result]

    module = traced(program, X, Y)
    before = results(module, X, Y, seed=1)
    kept = module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)[-2:]
    assert apply("functionalise", module)
    assert module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default) == kept
    assert equal(results(module, X, Y, seed=1), before)
