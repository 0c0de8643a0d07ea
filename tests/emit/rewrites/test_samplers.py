"""Draws from other random numbers, of the same law.

Frequencies are compared by the chi-square statistic. Its survival function has a closed form for an even number k of
degrees of freedom: ``exp(-x/2) * sum((x/2)**i / i! for i < k/2)``. Each test demands that the statistic be below the
point that a right sampler exceeds with probability 1e-6; the seed is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sgc.emit.rewrites.samplers import lower_samplers
from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

N = 200_000


def surprise(counts: Tensor, expected: Tensor) -> float:
    """How probable a chi-square statistic at least as large is; one more degree of freedom makes their number even."""
    statistic = float(((counts - expected).double() ** 2 / expected).sum())
    degrees = len(counts) - 1 + (len(counts) - 1) % 2
    half = statistic / 2
    return math.exp(-half) * sum(half**i / math.factorial(i) for i in range(degrees // 2))


def lowered(function: Callable[..., list[Tensor]], *examples: Tensor, gone: str) -> Callable[..., list[Tensor]]:
    module = traced(function, *examples)
    apply("functionalise", module)
    assert any(gone in str(node.target) for node in module.graph.nodes)
    assert not apply("lower_samplers", module, "torch")
    assert apply("lower_samplers", module, "fast")
    assert not any(gone in str(node.target) for node in module.graph.nodes)
    return module


def test_the_bound_itself() -> None:
    even = torch.full((5,), 100.0)
    assert surprise(even, even) == 1.0
    assert surprise(torch.tensor([160.0, 70.0, 90.0, 90.0, 90.0]), even) < 1e-6 < 0.05 < surprise(even + 5, even)


@pytest.mark.parametrize("scale", [1.0, 7.3, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical(scale: float, dtype: torch.dtype) -> None:
    """Unnormalised weights; one of zero is never drawn, wherever it stands."""
    weights = torch.tensor([0.0, 0.1, 0.0, 0.25, 0.05, 0.6, 0.0], dtype=dtype) * scale
    draw = lowered(lambda p: [torch.multinomial(p, N, replacement=True)], weights, gone="multinomial")
    (index, _) = results(draw, weights, seed=1)
    assert index.dtype == torch.int64 and index.shape == (N,)
    counts = index.bincount(minlength=7)
    assert counts[[0, 2, 6]].tolist() == [0, 0, 0]
    kept = weights > 0
    assert surprise(counts[kept], N * (weights / weights.sum())[kept]) > 1e-6


def test_categorical_rows() -> None:
    weights = torch.tensor([[0.2, 0.8, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    rows = weights.repeat(N // 10, 1)
    draw = lowered(lambda p: [torch.multinomial(p, 3, replacement=True)], rows, gone="multinomial")
    index = results(draw, rows, seed=2)[0].view(-1, 3, 3)
    for row, expected in enumerate(weights / weights.sum(-1, keepdim=True)):
        for position in range(3):
            counts = index[:, row, position].bincount(minlength=3)
            kept = expected > 0
            assert counts[~kept].sum() == 0
            assert kept.sum() == 1 or surprise(counts[kept], N // 10 * expected[kept]) > 1e-6
    # the draws of one row are independent of each other
    pairs = (3 * index[:, 1, 0] + index[:, 1, 1]).bincount(minlength=9)
    square = torch.outer(weights[1], weights[1]).flatten() / 16
    assert surprise(pairs, N // 10 * square) > 1e-6


def test_many_categories_of_zero_weight_at_the_end() -> None:
    """The float32 sum of a thousand tenths is not a hundred; the last category of positive weight ends the table."""
    weights = torch.cat([torch.full((1000,), 0.1), torch.zeros(1000)])
    draw = lowered(lambda p: [torch.multinomial(p, N, replacement=True)], weights, gone="multinomial")
    index = results(draw, weights, seed=3)[0]
    assert index.max() == 999 and index.min() == 0
    assert surprise(index.view(-1).div(100, rounding_mode="floor").bincount(), torch.full((10,), N / 10.0)) > 1e-6


@pytest.mark.parametrize(("zeros", "at_one"), [(0, 3), (20, 4)])
def test_extreme_uniform_numbers(zeros: int, at_one: int) -> None:
    """At u = 0 the first, at u just below 1 the last category of positive weight, whatever is around them.

    If a number is rounded to 1, a category of weight zero is drawn as little; many categories have sums that may fall.
    """
    weights = torch.cat([torch.tensor([0.0, 0.0, 1e-38, 3.0, 1e-38, 0.0]), torch.zeros(zeros)])
    draw = lowered(lambda p: [torch.multinomial(p, 2, replacement=True)], weights, gone="multinomial")
    rand = next(node for node in draw.graph.nodes if node.target is torch.ops.aten.rand.default)  # type: ignore[attr-defined]
    for number, drawn in ((0.0, 2), (1 - 2.0**-53, 3), (1.0, at_one)):
        rand.target = lambda *args, number=number, **kwargs: torch.full((2,), number, dtype=torch.float64)
        draw.recompile()  # type: ignore[attr-defined]
        assert draw(weights)[0].tolist() == [drawn, drawn]


def from_logits(logits: Tensor, *, normalised: bool) -> list[Tensor]:
    """Draws as Pyro's ``Categorical`` makes them, of a batch of one distribution."""
    if normalised:
        logits = logits - logits.logsumexp(-1, keepdim=True)
    probabilities = torch.softmax(logits.expand(N // 4, -1), -1)
    return [torch.multinomial(probabilities.reshape(-1, logits.shape[-1]), 1, replacement=True)]


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("categories", [5, 40])
def test_probabilities_of_a_softmax_need_no_sum(categories: int, normalised: bool) -> None:
    logits = torch.linspace(-3.0, 2.0, categories)
    logits[:-4] = -math.inf
    draw = lowered(lambda x: from_logits(x, normalised=normalised), logits, gone="multinomial")
    apply("drop_dead_nodes", draw)
    text = "\n".join(lines(draw))
    assert "_softmax" not in text and "div" not in text
    assert ("sub" in text and "logsumexp" in text) == normalised
    if categories == 5:
        assert ("amax" in text) == (not normalised)
    counts = results(draw, logits, seed=4)[0].flatten().bincount(minlength=categories)
    assert counts[:-4].sum() == 0
    assert surprise(counts[-4:], N // 4 * torch.softmax(logits, -1)[-4:]) > 1e-6


@pytest.mark.parametrize(
    "weights",
    [
        lambda x: torch.softmax(x, 0),  # over another dimension
        lambda x: torch.softmax(x, -1).reshape(3, 8),  # rows of other probabilities
        lambda x: torch.softmax(x, -1).t(),
        lambda x: torch.softmax(x.double(), -1).float(),
    ],
)
def test_probabilities_of_another_softmax_are_taken_as_they_are(weights: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-20.0, 10.0, 24).sin().reshape(6, 4)

    def f(x: Tensor) -> list[Tensor]:
        return [torch.multinomial(weights(x), N // 8, replacement=True)]

    index = results(lowered(f, x, gone="multinomial"), x, seed=6)[0]
    for drawn, expected in zip(index, weights(x), strict=True):
        assert surprise(drawn.bincount(minlength=len(expected)), N // 8 * expected / expected.sum()) > 1e-6


@pytest.mark.parametrize("normalised", [True, False])
def test_logits_that_lie_otherwise_than_their_softmax(normalised: bool) -> None:
    x = torch.linspace(-20.0, 10.0, 24).sin().reshape(3, 2, 4)

    def f(x: Tensor) -> list[Tensor]:
        logits = x.transpose(0, 1)
        if normalised:
            logits = logits - logits.logsumexp(-1, keepdim=True)
        return [torch.multinomial(torch.softmax(logits, -1).reshape(-1, 4), N // 8, replacement=True)]

    index = results(lowered(f, x, gone="multinomial"), x, seed=6)[0]
    for drawn, expected in zip(index, torch.softmax(x.transpose(0, 1), -1).reshape(-1, 4), strict=True):
        assert surprise(drawn.bincount(minlength=4), N // 8 * expected) > 1e-6


def test_a_softmax_of_half_precision_stays() -> None:
    """It computes in float32: the differences of logits are not rounded."""
    x = torch.linspace(-4.0, 4.0, 5, dtype=torch.bfloat16)
    draw = lowered(lambda x: [torch.multinomial(torch.softmax(x, -1), N, replacement=True)], x, gone="multinomial")
    assert any("_softmax" in line for line in lines(draw))


def test_probabilities_that_are_used_elsewhere_are_computed_once() -> None:
    def f(x: Tensor) -> list[Tensor]:
        probabilities = torch.softmax(x, -1)
        return [torch.multinomial(probabilities, 1), probabilities.log()]

    draw = lowered(f, torch.zeros(3, 4), gone="multinomial")
    assert sum(f" = {name}(" in line for line in lines(draw) for name in ("exp", "_softmax")) == 1


def test_without_replacement_one_draw_is_the_same() -> None:
    weights = torch.tensor([1.0, 3.0])
    draw = lowered(lambda p: [torch.multinomial(p, 1)], weights, gone="multinomial")
    assert results(draw, weights)[0].shape == (1,)
    two = traced(lambda p: [torch.multinomial(p, 2)], weights)
    assert not apply("lower_samplers", two, "fast")


def test_bernoulli() -> None:
    p = torch.tensor([0.0, 0.25, 0.9, 1.0])
    draw = lowered(lambda p: [torch.bernoulli(p.expand(N, 4))], p, gone="bernoulli")
    (z, _) = results(draw, p)
    assert z.dtype is p.dtype and set(z.unique().tolist()) == {0.0, 1.0}
    ones = z.sum(0)
    assert ones[0] == 0 and ones[3] == N
    for column in (1, 2):
        expected = N * torch.tensor([float(p[column]), 1 - float(p[column])])
        assert surprise(torch.stack([ones[column], N - ones[column]]), expected) > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_probabilities_of_half_precision(dtype: torch.dtype) -> None:
    """There are 256 uniform numbers of bfloat16, one of which is zero."""
    p = torch.tensor(0.001, dtype=dtype)
    draw = lowered(lambda p: [torch.bernoulli(p.expand(N))], p, gone="bernoulli")
    (z, _) = results(draw, p)
    ones = z.float().sum()
    assert z.dtype is dtype
    assert surprise(torch.stack([ones, N - ones]), N * torch.stack([p.float(), 1 - p.float()])) > 1e-6


def test_dropout_keeps_its_rate() -> None:
    x = torch.ones(N)
    draw = lowered(lambda x: [torch.nn.functional.dropout(x, 0.3)], x, gone="bernoulli")
    (kept, _) = results(draw, x)
    assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    count = (kept > 0).sum()
    assert surprise(torch.stack([count, N - count]), N * torch.tensor([0.7, 0.3])) > 1e-6


def test_normal_and_uniform_of_other_parameters() -> None:
    mean, deviation = torch.tensor(2.0).expand(N), torch.tensor(3.0).expand(N)

    def f(m: Tensor, s: Tensor) -> list[Tensor]:
        return [torch.normal(m, s), torch.empty(N).normal_(2.0, 3.0), torch.empty(N).uniform_(-1.0, 5.0)]

    draw = lowered(f, mean, deviation, gone="normal")
    first, second, third, *_ = results(draw, mean, deviation)
    uniforms = [torch.special.ndtr((first - 2) / 3), torch.special.ndtr((second - 2) / 3), (third + 1) / 6]
    for uniform in uniforms:
        assert surprise((uniform * 9).long().clamp(0, 8).bincount(minlength=9), torch.full((9,), N / 9.0)) > 1e-6


def test_standard_draws_give_the_same_numbers() -> None:
    """Under both settings of rng: no memory is made first."""

    def f(x: Tensor) -> list[Tensor]:
        return [torch.empty(3, 30).normal_(), torch.empty_like(x).uniform_(), torch.empty(2).uniform_(0.0, 1.0)]

    x = torch.zeros(7)
    for rng in ("torch", "fast"):
        module = traced(f, x)
        before = results(module, x, seed=5)
        apply("functionalise", module)
        assert apply("lower_samplers", module, rng)
        apply("drop_dead_nodes", module)
        assert lines(module) == [
            "randn = randn([3, 30])",
            "rand = rand([7])",
            "rand_1 = rand([2])",
            "return [randn, rand, rand_1]",
        ]
        assert equal(results(module, x, seed=5), before)


def test_a_generator_of_its_own_stays() -> None:
    generator = torch.Generator()
    module = traced(lambda x: [x + 0.5], torch.zeros(2))
    (add,) = (node for node in module.graph.nodes if node.op == "call_function")
    add.target, add.args, add.kwargs = torch.ops.aten.bernoulli.default, add.args[:1], {"generator": generator}
    assert not lower_samplers(module, "fast")
