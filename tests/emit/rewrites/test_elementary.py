"""Functions of many elements are written as arithmetic, whose error is bounded over all of float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.rewrites.elementary import _MANY
from tests.emit.rewrites.graphs import apply, lines, results, traced

SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 3e38, -3e38, 88.8, -104.0])


def everywhere() -> Tensor:
    """Every 4099th number of float32, and those that are no number or hardly one."""
    bits = torch.arange(-(2**31), 2**31, 4099).to(torch.int32)
    return torch.cat([SPECIAL, bits.view(torch.float32)])


def cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, target, reduction="none")


def lowered(function: Callable[..., Tensor], *examples: Tensor) -> tuple[Callable[..., list[Tensor]], bool]:
    """The module of a function after the pass, and whether that changed it."""
    module = traced(lambda *tensors: [function(*tensors)], *examples)
    changed = apply("lower_elementary", module)
    return module, changed


def units(found: Tensor, exact: np.ndarray) -> float:
    """The largest error in units in the last place of the exact number, of those that float32 has."""
    with np.errstate(all="ignore"):
        steps = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    has_one = np.isfinite(steps)
    return float(np.max(np.abs(found.numpy().astype(np.float64) - exact)[has_one] / steps[has_one]))


def softplus64(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("function", "exact", "bound"), [(torch.tanh, np.tanh, 2.0), (F.softplus, softplus64, 3.0)])
def test_the_error_is_bounded(
    function: Callable[..., Tensor], exact: Callable[[np.ndarray], np.ndarray], bound: float, compiled: bool
) -> None:
    x = everywhere()
    module, changed = lowered(function, x)
    assert changed
    run = compile_graph(module, [x], "torch") if compiled else module
    (ours,), theirs = run(x), function(x)
    assert units(ours, exact(x.numpy().astype(np.float64))) <= bound
    kept = SPECIAL.numel()
    assert torch.equal(ours[:kept].isnan(), theirs[:kept].isnan())
    assert torch.equal(ours[:kept].signbit(), theirs[:kept].signbit()) or function is F.softplus
    assert torch.equal(ours.isinf(), theirs.isinf())


def test_cross_entropy() -> None:
    x = everywhere()
    x = x[x.abs() < 1e30]
    for target in (torch.zeros_like(x), torch.ones_like(x), torch.linspace(0, 1, len(x))):
        module, changed = lowered(cross_entropy, x, target)
        assert changed
        (ours,) = module(x, target)
        wide = cross_entropy(x.double(), target.double())
        scale = wide.abs() + (1 - target.double()) * x.double().abs()  # the two terms may cancel, as in torch
        assert ((ours - wide).abs() <= 4 * 2**-24 * scale + 1e-38).all()


def test_cross_entropy_at_infinity_is_torch_s() -> None:
    x = SPECIAL.repeat(_MANY)
    for target in (torch.zeros_like(x), torch.ones_like(x)):
        module, changed = lowered(cross_entropy, x, target)
        assert changed
        (ours,) = module(x, target)
        theirs = cross_entropy(x, target)
        finite = theirs.isfinite()
        assert torch.equal(ours[~finite].nan_to_num(7.0), theirs[~finite].nan_to_num(7.0))
        assert torch.allclose(ours[finite], theirs[finite], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("function", "dtype", "elements"),
    [
        (torch.tanh, torch.float32, _MANY - 1),
        (torch.tanh, torch.float64, _MANY),
        (torch.tanh, torch.bfloat16, _MANY),
        (lambda x: F.softplus(x, beta=2), torch.float32, _MANY),
        (lambda x: F.softplus(x, threshold=5), torch.float32, _MANY),  # torch is off by 0.007 there
        (lambda x: F.binary_cross_entropy_with_logits(x, x), torch.float32, _MANY),
        (lambda x: F.binary_cross_entropy_with_logits(x, x, weight=x, reduction="none"), torch.float32, _MANY),
        (lambda x: F.binary_cross_entropy_with_logits(x, x, pos_weight=x, reduction="none"), torch.float32, _MANY),
    ],
)
def test_what_is_left_alone(function: Callable[[Tensor], Tensor], dtype: torch.dtype, elements: int) -> None:
    assert not lowered(function, torch.rand(elements).to(dtype))[1]


@pytest.mark.parametrize("layout", ["rows", "columns", "expanded", "strided"])
def test_results_lie_as_they_did(layout: str) -> None:
    layouts = {
        "rows": torch.rand(64, 96),
        "columns": torch.rand(96, 64).t(),
        "expanded": torch.rand(64, 1).expand(64, 96),
        "strided": torch.rand(64, 192)[:, ::2],
    }
    for function, given in (
        (torch.tanh, [layouts[layout]]),
        (F.softplus, [layouts[layout]]),
        *((cross_entropy, [layouts[layout], target]) for target in layouts.values()),
    ):
        module = traced(lambda *tensors, f=function: [f(*tensors)], *given)
        before = results(module, *given)
        assert apply("lower_elementary", module)
        for ours, theirs in zip(results(module, *given), before, strict=True):
            assert ours.stride() == theirs.stride()
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_polynomial_and_an_exponential() -> None:
    module = traced(lambda x: [F.softplus(x)], torch.zeros(_MANY))
    apply("lower_elementary", module)
    assert lines(module) == [
        "relu = relu(x0)",
        "abs_1 = abs(x0)",
        "neg = neg(abs_1)",
        "exp = exp(neg)",
        "add = add.Scalar(exp, 2.0)",
        "div = div.Tensor(exp, add)",
        "mul = mul.Tensor(div, div)",
        "mul_1 = mul.Scalar(mul, 0.1342574901)",
        "add_1 = add.Scalar(mul_1, 0.141183099)",
        "mul_2 = mul.Tensor(add_1, mul)",
        "add_2 = add.Scalar(mul_2, 0.2000378032)",
        "mul_3 = mul.Tensor(add_2, mul)",
        "add_3 = add.Scalar(mul_3, 0.3333332017)",
        "mul_4 = mul.Tensor(add_3, mul)",
        "mul_5 = mul.Tensor(mul_4, div)",
        "add_4 = add.Tensor(mul_5, div)",
        "mul_6 = mul.Scalar(add_4, 2.0)",
        "add_5 = add.Tensor(relu, mul_6)",
        "return [add_5]",
    ]
