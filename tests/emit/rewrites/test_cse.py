"""Common subexpressions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgc.tracing.leaves.opaque_calls  # noqa: F401  (registers the operators)
from sgc.emit.fx.purity import _is_pure_operator
from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

X = torch.tensor([1.0, -2.0])


def test_merged() -> None:
    def f(x: Tensor) -> list[Tensor]:
        return [x.exp().sum() * x.sin(), x.exp().sum() + 1, x.view(2, 1).max(0)[0] - x.view(2, 1).max(0)[0]]

    module = traced(f, X)
    before = results(module, X)
    assert apply("merge_common_subexpressions", module)
    apply("drop_dead_nodes", module)
    assert lines(module) == [
        "exp = exp(x0)",
        "sum_1 = sum(exp)",
        "sin = sin(x0)",
        "mul = mul.Tensor(sum_1, sin)",
        "add = add.Tensor(sum_1, 1)",
        "view = view(x0, [2, 1])",
        "max_1 = max.dim(view, 0)",
        "getitem = <built-in function getitem>(max_1, 0)",
        "sub = sub.Tensor(getitem, getitem)",
        "return [mul, add, sub]",
    ]
    assert equal(results(module, X), before)


def test_numbers_of_another_type_or_sign_and_other_keywords_are_not_equal() -> None:
    def f(x: Tensor) -> list[Tensor]:
        zeros = [x * value for value in (0.0, -0.0, 0, False)]
        made = [torch.full([2], 1.0, dtype=dtype) + x for dtype in (torch.float32, torch.float64)]
        return [(zeros[0] + zeros[1] + zeros[2] + zeros[3]).exp(), made[0].exp() + made[1].exp()]

    assert not apply("merge_common_subexpressions", traced(f, X))


def test_random_and_uninitialised_values_are_not_merged() -> None:
    def f(x: Tensor) -> list[Tensor]:
        draws = [torch.bernoulli(x.abs() / 3) for _ in range(2)]
        return [torch.rand(2) + torch.rand(2), draws[0] - draws[1]]

    module = traced(f, X)
    before = results(module, X)
    assert apply("merge_common_subexpressions", module)  # the probabilities are
    assert sum(".default(" in line or "rand" in line or "bernoulli(" in line for line in lines(module)) >= 4
    assert equal(results(module, X), before)
    assert not torch.equal(before[0][:1], 2 * torch.rand(1))


def test_two_results_stay_two_tensors() -> None:
    module = traced(lambda x: [x.exp(), x.exp(), x.exp() + 1], X)
    assert apply("merge_common_subexpressions", module)
    assert lines(module) == ["exp = exp(x0)", "exp_1 = exp(x0)", "add = add.Tensor(exp, 1)", "return [exp, exp_1, add]"]


@pytest.mark.parametrize(
    ("operator", "pure"),
    [
        (torch.ops.aten.exp.default, True),
        (torch.ops.aten.mm.default, True),
        (torch.ops.aten.sum.dim_IntList, True),
        (torch.ops.aten.expand.default, True),
        (torch.ops.aten.new_zeros.default, True),
        (torch.ops.prims.convert_element_type.default, True),
        (torch.ops.aten.exp_.default, False),
        (torch.ops.aten.add.out, False),
        (torch.ops.aten.rand.default, False),
        (torch.ops.aten.native_dropout.default, False),
        (torch.ops.aten.empty.memory_format, False),
        (torch.ops.aten.new_empty.default, False),
        (torch.ops.aten._local_scalar_dense.default, False),
        (torch.ops.aten._assert_async.msg, False),
        (torch.ops.aten.native_batch_norm.default, False),
        (torch.ops.sgc.opaque.default, False),
        (torch.ops.sgc.opaque_vjp.default, False),
    ],
)
def test_the_list_of_pure_operators(operator: torch._ops.OpOverload, pure: bool) -> None:
    assert _is_pure_operator(operator) is pure
