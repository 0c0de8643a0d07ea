"""Batching many small operators: the same values, fewer operators, and exactly the operators expected."""

from __future__ import annotations

import functools
import operator
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, fx
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx

import sgc
from sgc.config import Rng
from sgc.emit.differentiate import differentiate
from sgc.emit.fx.rewriting import literal
from sgc.emit.rewrites.batching.batch import batch
from tests.programs import Pair

aten = torch.ops.aten


def trace(function: Callable[..., list[Tensor]], *inputs: Tensor, functional: bool = False) -> fx.GraphModule:
    traced = torch.func.functionalize(function) if functional else function
    made = make_fx(traced, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    for node in made.graph.find_nodes(op="call_function", target=aten.lift_fresh_copy.default):
        node.replace_all_uses_with(node.args[0])
        made.graph.erase_node(node)
    return made


def operators(module: fx.GraphModule) -> Counter[str]:
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return Counter(name.removeprefix("aten.").split(".")[0] for name in names)


def assert_same(module: fx.GraphModule, other: fx.GraphModule, *inputs: Tensor, exact: bool = True) -> None:
    ours, theirs = ([tensor.clone() for tensor in inputs] for _ in range(2))
    torch.manual_seed(5)
    expected = [*module(*ours), *ours]
    torch.manual_seed(5)
    actual = [*other(*theirs), *theirs]
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype is b.dtype and a.shape == b.shape
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def batched(function: Callable[..., list[Tensor]], *inputs: Tensor, rng: Rng = "torch") -> fx.GraphModule:
    """The batched module, checked against the original if draws are the same, and to be a fixed point."""
    module = trace(function, *inputs)
    made, changed = batch(module, rng=rng)
    assert changed and made is not module
    made.graph.lint()
    assert len(operators(made)) > 0
    assert sum(operators(made).values()) < sum(operators(module).values())
    if rng == "torch":
        assert_same(module, made, *inputs, exact=False)
    again, changed = batch(made, rng=rng)
    assert not changed and again is made
    return made


# -- structure


def test_operators_on_rows_become_one_operator_on_the_tensor() -> None:
    def function(x: Tensor, w: Tensor) -> list[Tensor]:
        return [torch.stack([(row * w).exp() for row in x])]

    made = batched(function, torch.randn(6, 3), torch.randn(3))
    assert operators(made) == {"mul": 1, "exp": 1}  # neither a select nor a stack is left


def test_short_chains_of_tensors_and_not_of_numbers() -> None:
    def total(*terms: Tensor) -> list[Tensor]:
        return [functools.reduce(operator.add, [term.exp() * 1.5 for term in terms])]

    tensors, numbers = [torch.randn(3) for _ in range(6)], [torch.randn(()) for _ in range(6)]
    assert operators(batched(total, *tensors))["sum"] == 1
    assert operators(batched(total, *numbers))["add"] == 5
    assert operators(batched(total, *tensors[:4]))["add"] == 3  # too short, even so


def test_neighbours_of_a_chain_are_slices() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.stack([(x[t + 1] - x[t]).pow(2) for t in range(9)])]

    assert operators(batched(function, torch.randn(10))) == {"slice": 2, "sub": 1, "pow": 1}


def test_rows_in_another_order_are_gathered_by_index() -> None:
    order = [3, 0, 7, 5, 1, 6, 2, 4]

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        return [torch.stack([(x[i] * y[j]).exp() for i, j in enumerate(order)])]

    assert operators(batched(function, torch.randn(8), torch.randn(8))) == {"index_select": 1, "mul": 1, "exp": 1}


def test_a_recurrence_stays_and_what_hangs_on_it_is_batched() -> None:
    def function(x: Tensor, w: Tensor) -> list[Tensor]:
        z, costs = x[0], []
        for t in range(12):
            z = (z * w).tanh()
            costs.append((z - x[t]).pow(2).neg().exp())
        return [torch.stack(costs)]

    made = batched(function, torch.randn(12), torch.tensor(0.7))
    assert operators(made) == {"select": 1, "mul": 12, "tanh": 12, "stack": 1, "sub": 1, "pow": 1, "neg": 1, "exp": 1}


def test_recurrences_side_by_side_are_batched_step_by_step() -> None:
    def function(x: Tensor, w: Tensor) -> list[Tensor]:
        final = []
        for row in x:
            z = row
            for _ in range(5):
                z = (z * w).tanh()
            final.append(z)
        return [torch.stack(final)]

    assert operators(batched(function, torch.randn(7, 2), torch.randn(2))) == {"mul": 5, "tanh": 5}


def test_the_same_operator_in_two_places_is_two_groups() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        return [torch.stack([x[t].exp().neg() for t in range(5)]), torch.stack([y[t].tanh().neg() for t in range(5)])]

    assert operators(batched(function, torch.randn(5), torch.randn(5))) == {"exp": 1, "tanh": 1, "neg": 2}


def test_sums_become_reductions() -> None:
    def function(x: Tensor) -> list[Tensor]:
        total = x[0].exp()
        for t in range(1, 20):
            total = total + x[t].exp() if t < 15 else total - x[t].exp()
        return [total]

    assert operators(batched(function, torch.randn(20))) == {"exp": 1, "slice": 2, "sum": 2, "sub": 1}


def test_a_stack_keeps_its_order_unless_it_is_summed_away() -> None:
    def function(x: Tensor) -> list[Tensor]:
        rows = [x[t].exp() for t in (3, 1, 5, 0, 2, 4)]
        return [torch.stack(rows, 1).sum(0), torch.stack(rows).sum(1), torch.stack(rows).sum(0)]

    names = operators(batched(function, torch.randn(6, 2)))
    assert names["exp"] == 1 and names["cat"] == 1  # one order for both that need it, none for the sum


def test_a_stack_that_is_reduced_to_one_value_has_no_order() -> None:
    def function(x: Tensor) -> list[Tensor]:
        rows = [x[t].exp() for t in (3, 1, 5, 0, 2, 4)]
        some = torch.stack([row < 1 for row in rows])
        return [torch.stack(rows).sum(), some.all(), some.any(), torch.stack(rows[::-1]).sum(0)]

    assert operators(batched(function, torch.randn(6, 2))) == {"exp": 1, "lt": 1, "all": 1, "any": 1, "sum": 2}


def test_indices_of_rows_are_literals() -> None:
    """Such are never asked whether they are negative."""
    made = batched(lambda x: [torch.stack([x[i].exp() for i in (3, 0, 2, 4, 1, 0)])], torch.randn(5))
    (gathered,) = made.graph.find_nodes(op="call_function", target=torch.ops.aten.index_select.default)
    assert literal(gathered.args[2]) is not None


def loop(steps: int, rows: int, inner: int, outer: int) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """The gradients of a network that is used at each step, for the rows of that step; its inputs."""

    def function(inputs: Tensor, first: Tensor, second: Tensor, bias: Tensor) -> list[Tensor]:
        weights = [tensor.detach().requires_grad_() for tensor in (first, second, bias)]
        z, total = inputs[0], torch.zeros(())
        for t in range(steps):
            z = (z @ weights[0] + inputs[t]).tanh()
            total = total + torch.nn.functional.linear(z, weights[1], weights[2]).tanh().sum()
        return list(torch.autograd.grad(total, weights))

    shapes = (steps, rows, inner), (inner, inner), (outer, inner), (outer,)
    return function, [torch.randn(shape) / 2 for shape in shapes]


def test_gradients_of_a_weight_used_at_many_times_are_one_product() -> None:
    function, inputs = loop(6, rows=5, inner=4, outer=3)
    made = batched(function, *inputs)
    found = operators(made)
    # 6 forward and 5 backward of the recurrence, and the gradient of its matrix; of the other layer: the product, the
    # gradient of its input, the gradient of its matrix.
    assert found["mm"] == 6 + 5 + 1 + 3 and found["bmm"] == 0
    assert found["sum"] <= 2  # the loss, which is not returned, is dead; the bias' gradient


@pytest.mark.parametrize(("rows", "products"), [(16, 1), (1024, 6)])
def test_large_products_are_joined_where_their_operands_are_smaller_than_their_results(
    rows: int, products: int
) -> None:
    """Of matrices of 80 by 80, of 6400 elements, too large to be stacked for anything else."""

    def function(inputs: Tensor, gradients: Tensor) -> list[Tensor]:
        terms = [gradients[t].t() @ inputs[t] for t in range(6)]
        return [functools.reduce(operator.add, terms)]

    inputs = torch.randn(2, 6, rows, 80) / 10
    module = trace(function, *inputs)
    made, changed = batch(module, rng="torch")
    assert changed == (products == 1)
    assert_same(module, made, *inputs, exact=False)
    assert operators(made)["mm"] == products
    assert operators(made)["add"] == products - 1


def test_what_is_no_product_is_added_to_those_that_are() -> None:
    def function(x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
        terms = [x[t].t() @ y[t] for t in range(5)]
        used = terms[4] * 2  # this one is needed for itself
        return [functools.reduce(operator.add, [w.exp(), *terms[:3], w.tanh(), *terms[3:]]) - w, used]

    made = batched(function, torch.randn(5, 4, 3), torch.randn(5, 4, 2), torch.randn(3, 2))
    assert operators(made)["mm"] == 2


def test_transposed_products_and_sums_of_columns() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        products = functools.reduce(operator.add, [(x[t].t() @ y[t]).t() for t in range(6)])
        kept = functools.reduce(operator.add, [x[t].sum(0, keepdim=True).view(3) for t in range(6)])
        plain = functools.reduce(operator.add, [y[t].sum(0) for t in range(6)])
        flat = functools.reduce(operator.add, [(x[t].t() @ y[t].exp()).view(6) for t in range(6)])
        keeping = functools.reduce(operator.add, [x[t].exp().sum(0, keepdim=True) for t in range(6)])
        return [products, kept, plain, flat, keeping]

    made = batched(function, torch.randn(6, 4, 3), torch.randn(6, 4, 2))
    assert operators(made)["mm"] == 1


def test_products_are_batched_by_the_matrix_that_they_share() -> None:
    def function(x: Tensor, *weights: Tensor) -> list[Tensor]:
        return [torch.stack([row @ weight for weight in weights for row in x])]

    shared = batched(function, torch.randn(5, 4, 3), torch.randn(3, 2), torch.randn(3, 2))
    assert operators(shared)["mm"] == 2 and operators(shared)["bmm"] == 0
    # Three rows for each of them are too few for a group; they are one group together.
    together = batched(function, torch.randn(3, 4, 3), *(torch.randn(3, 2) for _ in range(4)))
    assert operators(together)["mm"] == 0 and operators(together)["bmm"] == 1


def test_partial_sums_become_a_cumulative_sum() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        total, weighted = x[0].exp(), []
        for t in range(1, 12):
            total = total + x[t].exp()
            weighted.append(total * y[t])
        return [torch.stack(weighted)]

    assert operators(batched(function, torch.randn(12), torch.randn(12))) == {
        "exp": 1,
        "cumsum": 1,
        "slice": 2,
        "mul": 1,
    }


def test_a_sum_that_feeds_its_own_terms_is_no_cumulative_sum() -> None:
    def function(x: Tensor) -> list[Tensor]:
        z = x[0]
        for t in range(1, 12):
            z = z + (z * x[t]).tanh()
        return [z]

    module = trace(function, torch.randn(12))
    made, changed = batch(module, rng="fast")
    assert not changed and made is module


def test_a_sum_whose_later_terms_need_earlier_sums_is_cut_there() -> None:
    def function(x: Tensor) -> list[Tensor]:
        total, shown = x[0].exp(), []
        for t in range(1, 24):
            total = total + (x[t].exp() if t != 12 else (shown[3] * x[t]).exp())
            shown.append(total.tanh())
        return [torch.stack(shown)]

    assert operators(batched(function, torch.randn(24)))["cumsum"] == 2


def test_two_sums_that_need_each_other() -> None:
    """Each alone could be a cumulative sum; both cannot."""

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        a, b, shown = x[0].exp(), y[0].sin(), []
        for t in range(1, 20):
            a = a + ((b * x[t]).exp() if t == 15 else x[t].exp())
            b = b + ((shown[2] * y[t]).sin() if t == 12 else y[t].sin())
            shown += [a.tanh(), b.tanh()]
        return [torch.stack(shown)]

    assert operators(batched(function, torch.randn(20), torch.randn(20)))["cumsum"] >= 1


def test_gradients_of_selects_become_one_stack() -> None:
    def function(loc: Tensor, x: Tensor) -> list[Tensor]:
        loc = loc.detach().requires_grad_()
        with torch.enable_grad():
            loss = functools.reduce(operator.add, [(loc[t] - x[t]).pow(2) for t in range(10)])
            (gradient,) = torch.autograd.grad(loss, loc)
        return [loss.detach(), gradient]

    made = batched(function, torch.randn(10), torch.randn(10))
    assert not {"select_backward", "select", "stack"} & set(operators(made))


def test_rows_of_rows() -> None:
    """The second run sees selects of a select, each with another index."""

    def function(x: Tensor) -> list[Tensor]:
        return [x[:, :, 2].tanh()[t] for t in range(6)]

    def of_select(x: Tensor) -> list[Tensor]:
        chosen = x.select(2, 2)
        return [chosen[t].exp() for t in range(6)]

    x = torch.randn(6, 2, 3)
    for once in (function, of_select):
        module = trace(once, x)
        for _ in range(3):
            made, _ = batch(module, rng="torch")
            assert_same(module, made, x)
            module = made


def test_constants_are_stacked_now_and_equal_ones_are_one() -> None:
    def function(x: Tensor) -> list[Tensor]:
        scaled = [x[t] * torch.tensor(0.5) for t in range(6)]
        return [torch.stack([s + torch.tensor(float(t)) for t, s in enumerate(scaled)])]

    made = batched(function, torch.randn(6))
    assert operators(made) == {"mul": 1, "slice": 1, "add": 1}


# -- random numbers


def draws(x: Tensor) -> list[Tensor]:
    samples = []
    for t in range(6):
        normal = torch.normal(x[t], torch.ones(()))
        samples += [normal, torch.bernoulli(normal.sigmoid()), torch.randn(3).sum(), torch.rand(()).log()]
    return [torch.stack(samples)]


def test_random_operators_are_left_alone_with_torch_numbers() -> None:
    module = trace(draws, torch.randn(6))
    made = batched(draws, torch.randn(6))

    def drawn(module: fx.GraphModule) -> list[Any]:
        seeded = torch.Tag.nondeterministic_seeded
        calls = (node for node in module.graph.nodes if node.op == "call_function")
        return [node.target for node in calls if seeded in node.target.tags]

    assert len(drawn(module)) == 24 and drawn(made) == drawn(module)


def test_random_operators_are_batched_with_fast_numbers() -> None:
    names = operators(batched(draws, torch.randn(6), rng="fast"))
    assert [names[name] for name in ("normal", "bernoulli", "randn", "rand")] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda p: torch.bernoulli(p),
        lambda p: torch.rand(2),
        lambda p: torch.randn_like(p),
        lambda p: torch.normal(p, 1.0),
        lambda p: aten.normal_functional(p),
        lambda p: aten.exponential(p),
        lambda p: torch.multinomial(p, 1).float(),
        lambda p: torch._standard_gamma(p),
        lambda p: torch.poisson(50 * p),
        lambda p: torch._sample_dirichlet(p),
    ],
)
def test_members_that_share_their_operands_draw_each_for_itself(draw: Callable[[Tensor], Tensor]) -> None:
    def function(p: Tensor) -> list[Tensor]:
        return [torch.stack([draw(p).exp().sum() for _ in range(100)])]

    p = torch.full((2,), 0.5)
    module = trace(function, p)
    made, changed = batch(module, rng="fast")
    assert changed and sum(operators(made).values()) < 12
    (ours,), (theirs,) = made(p), module(p)
    assert ours.shape == theirs.shape
    assert len(ours.unique()) > max(1, len(theirs.unique()) // 2)
    # two samples of one law, 100 each, compared by the Kolmogorov-Smirnov distance: P(above) is about 1e-7
    grid = torch.cat([ours, theirs])
    distance = ((ours[:, None] <= grid).float().mean(0) - (theirs[:, None] <= grid).float().mean(0)).abs().max()
    assert distance < 2.9 * (2 / 100) ** 0.5


def test_sums_do_not_change_the_order_of_torch_numbers() -> None:
    """A partial sum feeds a draw, a later term of the sum needs the draw after it."""

    def function(x: Tensor) -> list[Tensor]:
        total, shown = x[0].exp(), []
        for t in range(1, 30):
            first = torch.normal(total, torch.ones(())) if t == 10 else x[t]
            second = torch.randn(()) if t == 10 else x[t]
            total = total + (second.exp() if t == 10 else x[t].exp())
            shown.append((total * first).tanh())
        return [torch.stack(shown)]

    batched(function, torch.randn(30))  # compares under one seed


# -- the contract


def test_writes_stay_at_the_end() -> None:
    def function(x: Tensor, average: Tensor) -> list[Tensor]:
        costs = torch.stack([x[t].exp() * 2 for t in range(8)])
        before = average.clone()
        average.copy_(0.9 * average + 0.1 * costs.sum())
        return [costs - before]

    inputs = torch.randn(8), torch.randn(())
    module = trace(function, *inputs, functional=True)
    made, changed = batch(module, rng="torch")
    assert changed
    assert_same(module, made, *inputs, exact=False)
    assert operators(module)["copy_"] == 1 == operators(made)["copy_"]
    last = [node for node in made.graph.nodes if node.op == "call_function"][-1]
    assert last.target is aten.copy_.default and last.args[0].op == "placeholder"  # type: ignore[union-attr]


def unfunctional() -> fx.GraphModule:
    def function(x: Tensor) -> list[Tensor]:
        parts = [x[t].exp() for t in range(8)]
        parts[0].add_(1.0)
        return [torch.stack(parts)]

    return make_fx(function, tracing_mode="fake")(torch.randn(8))


def strided() -> fx.GraphModule:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.stack([x[t].exp().as_strided((), ()) for t in range(8)])]

    return make_fx(function, tracing_mode="fake")(torch.randn(8))


def large() -> fx.GraphModule:
    return trace(lambda x: [row.exp() for row in x], torch.randn(8, 5000))


def few() -> fx.GraphModule:
    return trace(lambda x: [x[0].exp(), x[1].exp(), x[2].exp()], torch.randn(3))


@pytest.mark.parametrize("make", [unfunctional, strided, large, few])
def test_left_as_it_is(make: Callable[[], fx.GraphModule]) -> None:
    module = make()
    code = module.code
    for rng in ("torch", "fast"):
        made, changed = batch(module, rng=rng)  # type: ignore[arg-type]
        assert not changed and made is module and module.code == code


def test_the_given_module_is_not_changed() -> None:
    module = trace(draws, torch.randn(6))
    code = module.code
    batch(module, rng="fast")
    assert module.code == code


def test_time_grows_with_the_number_of_operators() -> None:
    """Counted, not timed: the batched graph has one size, whatever the length of the loop."""

    def function(x: Tensor) -> list[Tensor]:
        loss = torch.zeros(())
        for t in range(1, len(x)):
            loss = loss + (x[t] - x[t - 1]).pow(2).neg().exp()
        return [loss]

    sizes = {sum(operators(batched(function, torch.randn(length))).values()) for length in (20, 40, 160)}
    assert len(sizes) == 1


# -- every kind of operator


def members(x: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Operators on a matrix of shape (2, 3) and an index of shape (2,) with values below 2."""
    column = index.unsqueeze(-1)
    return {
        "sum": x.sum(),
        "sum over one": x.sum(-1, keepdim=True),
        "mean": x.mean(0),
        "amax": x.amax(-1),
        "logsumexp": x.logsumexp(-1),
        "softmax": x.softmax(-1),
        "log_softmax": x.log_softmax(0),
        "cumsum": x.cumsum(1),
        "argmax": x.argmax(-1),
        "view": x.reshape(3, 2),
        "strided view": x.t().reshape(6),
        "permute": x.permute(1, 0),
        "expand": x.unsqueeze(1).expand(2, 4, 3),
        "slice": x[:, 1:],
        "select": x.select(-1, 2),
        "flip": x.flip(0),
        "gather": x.gather(-1, column),
        "index": x[index],
        "scatter": torch.zeros(2, 3).scatter_add(-1, column, x[:, :1]),
        "index_put": torch.zeros(2, 3).index_put((index,), x, accumulate=True),
        "mm": x @ x.t(),
        "addmm": torch.addmm(torch.ones(2), x, x.t()),
        "where": torch.where(x > 0, x, 0.0),
        "clamp": x.clamp(-0.5, 0.5),
        "to": x.to(torch.float64),
        "promote": x.to(torch.float64).sum() * x,
        "integer": index * 0.5,
        "one_hot": torch.nn.functional.one_hot(index, 3) * x,
        "zeros_like": torch.zeros_like(x) + x,
        "lgamma": x.exp().lgamma(),
        "cat": torch.cat([x, x.exp()], -1),
        "softplus": torch.nn.functional.softplus(x),
        "bce": torch.nn.functional.binary_cross_entropy_with_logits(x, x.sigmoid(), reduction="none"),
        "into a slice": torch.slice_scatter(x, x[:, :1].exp(), -1, 1, -1),
        "into a slice from its end": torch.slice_scatter(x, x[:, :2].exp(), 1, -2),
        "into a slice that is cut off": torch.slice_scatter(x, x.exp(), 1, 0, 9),
        "into a slice to its start": torch.slice_scatter(x, x[:1].exp(), 0, None, -1),
        "into every second": torch.slice_scatter(x, x[:, :2].exp(), 1, None, None, 2),
        "into a column": torch.select_scatter(x, x[:, 0].exp(), 1, -2),
        "into a diagonal": torch.diagonal_scatter(x, x[:1, 0].exp(), -1),
        "gradient of a slice": aten.slice_backward(x[:, :1].exp(), [2, 3], -1, -2, -1, 1),
        "mean bce": torch.nn.functional.binary_cross_entropy_with_logits(x, x.sigmoid()),
    }


@pytest.mark.parametrize("name", members(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
def test_each_kind_of_operator(name: str) -> None:
    def function(x: Tensor, index: Tensor) -> list[Tensor]:
        return [members(row.tanh(), index[t] * 1)[name] for t, row in enumerate(x)]

    x, index = torch.randn(6, 2, 3), torch.randint(2, (6, 2))
    names = operators(batched(function, x, index))
    assert sum(names.values()) - names["select"] < 18  # nothing is done for each member


# -- programs at random


def program(seed: int) -> Callable[..., list[Tensor]]:
    """A loop over some operators, chosen at random, on values of this step and of the one before."""
    choose = random.Random(seed)
    unary: list[Callable[[Tensor], Tensor]] = [
        torch.tanh,
        torch.neg,
        lambda v: v.sum(),
        lambda v: v.unsqueeze(0),
        lambda v: v.reshape(-1),
        lambda v: v.sigmoid().log(),
        lambda v: v.sum(0) if v.dim() else v,
        lambda v: v.transpose(0, -1) if v.dim() else v,
        lambda v: v[..., :1] if v.dim() else v,
        lambda v: v.to(torch.float64),
        lambda v: v * 0.5,
        lambda v: v.detach(),
        lambda v: v[-1] if v.dim() else v,
        lambda v: v.select(-1, 0) if v.dim() else v,
    ]
    binary: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: torch.where(a > 0, a, b),
    ]
    body = [
        (choose.choice(unary), None) if choose.random() < 0.5 else (None, choose.choice(binary))
        for _ in range(choose.randint(4, 14))
    ]
    picks = [(choose.random(), choose.random(), choose.random() < 0.3) for _ in body]
    length = choose.randint(5, 14)

    def function(*inputs: Tensor) -> list[Tensor]:
        before, results, total = list(inputs), [], torch.zeros((), dtype=torch.float64)
        for step in range(length):
            values = [x[step] if x.dim() and x.shape[0] > step else x for x in inputs]
            for (one, two), (first, second, back) in zip(body, picks, strict=True):
                pool = before if back else values
                a, b = pool[int(first * len(pool))], values[int(second * len(values))]
                if one is not None:
                    made = one(a)
                else:
                    assert two is not None
                    made = two(a, b) if _broadcast(a, b) else a
                if made.numel() <= 64 and made.dim() < 5:
                    values.append(made.clamp(-3, 3))
            total = total + values[-1].sum()
            if picks[0][2]:
                results.append(total * 2)
            results.append(values[len(values) // 2])
            before = values
        return [*results, total]

    return function


def _broadcast(a: Tensor, b: Tensor) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a.shape), reversed(b.shape), strict=False))


@pytest.mark.parametrize("seed", range(24))
def test_programs_at_random(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator) for shape in [(14,), (14, 3), (), (2, 3), (14, 2, 1)]]
    module = trace(program(seed), *inputs)
    made, changed = batch(module, rng="torch")
    assert changed
    assert_same(module, made, *inputs, exact=False)
    again, _ = batch(made, rng="torch")
    assert_same(module, again, *inputs, exact=False)


# -- programs unrolled over time


def gaussian_chain(length: int) -> tuple[Pair, Tensor]:
    def model(x: Tensor) -> None:
        z = torch.zeros(())
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[t])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(length))
        scale = pyro.param("scale", torch.ones(length), constraint=constraints.positive)
        for t in pyro.markov(range(length)):
            pyro.sample(f"z_{t}", dist.Normal(loc[t], scale[t]))

    return (model, guide), torch.randn(length)


def categorical_chain(length: int) -> tuple[Pair, Tensor]:
    def model(x: Tensor) -> None:
        step, z = torch.eye(3) + 0.2, torch.tensor(0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z_{t}", dist.Categorical(step[z]))
            pyro.sample(f"x_{t}", dist.Normal(z * 1.0, 1.0), obs=x[t])

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(length, 3))
        for t in pyro.markov(range(length)):
            baseline = {"use_decaying_avg_baseline": True}
            pyro.sample(f"z_{t}", dist.Categorical(logits=logits[t]), infer={"baseline": baseline})

    return (model, guide), torch.randn(length)


@pytest.mark.parametrize(("chain", "writes"), [(gaussian_chain, 0), (categorical_chain, 1)])
def test_unrolled_chains(chain: Callable[[int], tuple[Pair, Tensor]], writes: int) -> None:
    computing = []
    for length in (16, 24):
        pyro.clear_param_store()
        (model, guide), x = chain(length)
        loss = sgc.compile(model, guide, backend="eager").initialize(x)
        made = loss.specializations[-1]
        fetched = [owner.fetch() for owner in made.owners.values()]
        tensors = [x if tensor is None else tensor for tensor in fetched] + made.averages()
        wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        differentiated = differentiate(made.emitted.module, tensors, wanted).module
        module = trace(differentiated, *(tensor.detach() for tensor in tensors), functional=True)
        slow, changed = batch(module, rng="torch")
        assert changed
        assert_same(module, slow, *(tensor.detach() for tensor in tensors), exact=False)
        fast, changed = batch(module, rng="fast")
        assert changed
        names = operators(fast)
        assert names["copy_"] == writes * length
        computing.append(sum(names.values()) - 2 * names["copy_"])  # a select goes with each write
        assert computing[-1] < 160 < sum(operators(module).values())
    assert computing[0] == computing[1]
