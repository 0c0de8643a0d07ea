"""Literals: merged if equal, and computed with at compile time."""

from __future__ import annotations

import torch
from torch import Tensor

from sgc.emit.rewrites.merge_constants import LIMIT
from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

X = torch.tensor([1.0, -2.0])


def test_equal_literals_become_one() -> None:
    def f(x: Tensor) -> list[Tensor]:
        half = torch.tensor([0.5, 1.0])
        again, minus, wide = torch.tensor([0.5, 1.0]), torch.tensor([-0.5, 1.0]), torch.tensor([0.5, 1.0]).double()
        return [x * half, x + again, x * minus, x * wide]

    module = traced(f, X)
    before = results(module, X)
    assert apply("merge_constants", module)
    assert lines(module)[:3] == [
        "_tensor_constant0 = [0.5, 1.0]",
        "_tensor_constant2 = [-0.5, 1.0]",
        "_to_copy = _to_copy(_tensor_constant0)",
    ]
    assert equal(results(module, X), before)


def test_bits_decide() -> None:
    """0.0 is not -0.0, and NaN is NaN."""

    def f(x: Tensor) -> list[Tensor]:
        literals = [torch.tensor(value) for value in (0.0, -0.0, float("nan"), float("nan"))]
        return [x * literal for literal in literals]

    module = traced(f, X)
    assert apply("merge_constants", module)
    assert [line for line in lines(module) if "constant" in line and "mul" not in line] == [
        "_tensor_constant0 = 0.0",
        "_tensor_constant1 = -0.0",
        "_tensor_constant2 = nan",
    ]


def test_what_the_user_holds_is_no_literal() -> None:
    """A tensor that is merely read may change between two calls: not folded, nor merged with an equal one."""
    mine, other = torch.tensor(2.0), torch.tensor(2.0)
    module = traced(lambda x: [x * mine.log(), x * other], X)
    assert not apply("fold_constants", module)
    assert not apply("merge_constants", module)
    before = results(module, X)
    mine.fill_(3.0)
    assert not equal(results(module, X), before)


def test_constant_arithmetic_is_done_once() -> None:
    def f(x: Tensor) -> list[Tensor]:
        scale = torch.tensor(0.5)
        weights = torch.tensor([1.0, 2.0]).softmax(-1)
        return [x / (2 * scale.pow(2)).expand(2) - scale.log(), x * weights]

    module = traced(f, X)
    before = results(module, X)
    assert apply("fold_constants", module)
    assert lines(module) == [
        "folded_0 = [0.2689414322376251, 0.7310585975646973]",
        "full_1 = full([2], 0.5)",
        "div = div.Tensor(x0, full_1)",
        "full = full([], -0.6931471824645996)",
        "sub = sub.Tensor(div, full)",
        "mul_1 = mul.Tensor(x0, folded_0)",
        "return [sub, mul_1]",
    ]
    assert equal(results(module, X), before)


def test_fills_are_spelt_alike_and_detached_from_what_they_took_their_shape_from() -> None:
    def f(x: Tensor) -> list[Tensor]:
        y = x.exp()
        return [-torch.ones_like(y) * x, x + x.new_zeros(2), x - torch.full_like(y, 2.0), torch.scalar_tensor(3.0) * x]

    module = traced(f, X)
    before = results(module, X)
    assert apply("fold_constants", module)
    fills = [line.partition(" = ")[2] for line in lines(module) if " = full(" in line]
    assert fills == ["full([2], -1.0)", "full([2], 0.0)", "full([2], 2.0)", "full([], 3.0)"]
    assert sum("exp" in line for line in lines(module)) == 1  # nothing reads it
    assert equal(results(module, X), before)


def test_random_numbers_inputs_and_large_values_are_not_folded() -> None:
    big = LIMIT // 4 + 1

    def f(x: Tensor) -> list[Tensor]:
        return [torch.bernoulli(torch.tensor(0.5)) + x, torch.arange(big).float().sin() * x[0], x.exp()]

    module = traced(f, X)
    before = lines(module)
    assert not apply("fold_constants", module)
    assert lines(module) == before


def test_results_stay_fresh_tensors() -> None:
    """A caller may write into what it is given; a literal of the module must not change by that."""
    module = traced(lambda x: [torch.tensor([1.0, 2.0]).exp(), torch.tensor(2.0).log()], X)
    assert apply("fold_constants", module)
    assert lines(module)[-1] == "return [exp, full]"
    first = results(module, X)
    for result in first:
        result.zero_()
    assert float(results(module, X)[0][0]) > 2


def test_a_failure_is_left_to_the_run() -> None:
    module = traced(lambda x: [x + torch.linalg.cholesky(-torch.tensor([[1.0, 2.0], [2.0, 1.0]]))], X)
    apply("fold_constants", module)
    assert any("cholesky" in line for line in lines(module))
