"""Matrix products are written as MKL is fastest at them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.cpp_entry import _native_modules
from tests.emit.rewrites.graphs import apply, lines, results, traced

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")


def rewritten(function: object, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[str]:
    """The lines of a graph after the pass, which computes what it did, in tensors that lie as they did."""
    torch.manual_seed(0)
    examples = [torch.randn(shape, dtype=dtype) for shape in shapes]
    module = traced(function, *examples)  # type: ignore[arg-type]
    before = results(module, *examples)
    apply("lay_out_products", module)
    after = results(module, *examples)
    for ours, theirs in zip(after, before, strict=True):
        assert ours.stride() == theirs.stride()
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    output = module.graph.output_node().args[0]
    assert [node.meta["val"].stride() for node in output] == [tensor.stride() for tensor in before[: len(output)]]
    return lines(module)


def test_a_narrow_product() -> None:
    assert rewritten(lambda a, b: [a @ b], (128, 64), (64, 10)) == [
        "transpose = transpose.int(x1, -2, -1)",
        "transpose_1 = transpose.int(x0, -2, -1)",
        "mm_1 = mm(transpose, transpose_1)",
        "transpose_2 = transpose.int(mm_1, -2, -1)",
        "clone = clone(transpose_2)",
        "return [clone]",
    ]


@pytest.mark.parametrize(
    ("left", "right", "dtype", "narrow"),
    [
        ((128, 64), (64, 16), torch.float32, False),  # as wide as a vector
        ((128, 64), (64, 10), torch.float64, False),  # of doubles a vector has eight
        ((512, 64), (64, 7), torch.float64, True),
        ((10, 640), (640, 8), torch.float32, False),  # transposed it would be as narrow
        ((64, 64), (64, 3), torch.float32, False),  # over before it matters
        ((512, 32), (32, 8), torch.float32, False),  # short sums, whose results are many
        ((5, 24, 64), (5, 64, 8), torch.float32, True),  # many of them
        ((5, 8, 64), (5, 64, 8), torch.float32, False),
        ((128, 64), (64, 10), torch.bfloat16, False),  # another library's
    ],
)
def test_which_are_transposed(left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype, narrow: bool) -> None:
    product = torch.mm if len(left) == 2 else torch.bmm
    found = rewritten(lambda a, b: [product(a, b)], left, right, dtype=dtype)
    assert any("clone" in line for line in found) == narrow


def test_a_product_of_a_product_reads_no_copy() -> None:
    def f(image: Tensor, rows: Tensor, columns: Tensor) -> list[Tensor]:
        return [torch.bmm(rows, torch.bmm(image, columns)).reshape(64, -1)]

    found = rewritten(f, (64, 24, 24), (64, 8, 24), (64, 24, 8))
    assert not any("clone" in line for line in found)
    assert sum("bmm(" in line for line in found) == 2


def test_a_transposed_one_is_handed_on_through_views() -> None:
    def f(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        product = a @ b
        return [product.t() @ c, product * 2]

    found = rewritten(f, (128, 64), (64, 10), (128, 64))
    assert found[-5:] == [
        "clone = clone(transpose_2)",
        "t_1 = t(transpose_2)",
        "mm_1 = mm(t_1, x2)",
        "mul = mul.Tensor(clone, 2)",
        "return [mm_1, mul]",
    ]


def test_a_bias_is_added_apart() -> None:
    assert rewritten(lambda bias, a, b: [torch.addmm(bias, a, b).tanh()], (100,), (128, 64), (64, 100)) == [
        "mm = mm(x1, x2)",
        "unsqueeze = unsqueeze(mm, 0)",
        "add = add.Tensor(unsqueeze, x0)",
        "squeeze = squeeze.dim(add, 0)",
        "tanh = tanh(squeeze)",
        "return [tanh]",
    ]


@pytest.mark.parametrize("bias", [(10,), (128, 10), (128, 1), (1, 10)])
def test_biases_of_narrow_products(bias: tuple[int, ...]) -> None:
    found = rewritten(lambda bias, a, b: [torch.addmm(bias, a, b)], bias, (128, 64), (64, 10))
    assert not any("addmm" in line for line in found)


def test_a_scaled_bias_stays() -> None:
    found = rewritten(lambda bias, a, b: [torch.addmm(bias, a, b, beta=0.5)], (100,), (128, 64), (64, 100))
    assert any("addmm" in line for line in found)


@pytest.mark.inductor
def test_inductor_keeps_them_so() -> None:
    """What it compiles computes the same, and its patterns do not undo it: there is no ``addmm`` in its code."""
    torch.manual_seed(0)
    examples = [torch.randn(10), torch.randn(128, 64), torch.randn(10, 64)]
    module = traced(lambda bias, a, b: [torch.nn.functional.linear(a, b, bias).tanh()], *examples)
    (before,) = results(module, *examples)[:1]
    assert apply("lay_out_products", module)
    run = compile_graph(module, examples, "torch")
    assert torch.allclose(run(*examples)[0], before, rtol=1e-5, atol=1e-5)
    (native,) = _native_modules(run)
    text = Path(native.__file__).with_suffix(".cpp").read_text()
    assert "cpu_mm_out(" in text and "cpu_addmm_out(" not in text
