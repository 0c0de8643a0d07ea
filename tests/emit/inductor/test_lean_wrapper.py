"""Buffers as addresses: the same results, a tensor only where an operator asks for one, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgc.emit.differentiate import trace
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.cpp_entry import _native_modules


def program(x: Tensor, w: Tensor) -> list[Tensor]:
    """Buffers that kernels share, that operators take and give, views of some, memory that is used again, results."""
    hidden = torch.mm(x, w).tanh()
    turned = torch.mm(hidden.t(), (x * 2).exp())
    again = torch.mm(turned + 1, turned.t().contiguous() - 1).sigmoid()
    drawn = torch.cumsum(again.exp(), 0)
    return [again.sum(), drawn[1:], hidden, torch.linalg.qr(again)[1]]


@pytest.mark.inductor
def test_results() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(7, 5), torch.randn(5, 3)
    compiled = compile_graph(trace(program, [x, w]), [x, w], "torch")
    for _ in range(2):
        found = compiled(x, w)
        for ours, expected in zip(found, program(x, w), strict=True):
            torch.testing.assert_close(ours, expected)
    (module,) = _native_modules(compiled)
    text = Path(module.__file__).with_suffix(".cpp").read_text()
    assert text.count("= Pooled(") > 3
    kept = [tensor.clone() for tensor in found]
    compiled(x + 1, w)
    assert all(torch.equal(tensor, before) for tensor, before in zip(found, kept, strict=True))


@pytest.mark.inductor
def test_parts_of_a_buffer_are_addresses_too() -> None:
    """Kernels write the parts of a large concatenation where they belong, through views of the whole."""

    def program(x: Tensor, w: Tensor) -> list[Tensor]:
        parts = torch.cat([x.exp(), torch.mm(x, w).sin(), x.cos()])
        return [torch.mm(parts.t(), parts), torch.mm(parts[5:85], w) + torch.mm(parts[85:165], w), parts[90:].sum()]

    torch.manual_seed(0)
    x, w = torch.randn(80, 40), torch.randn(40, 40)
    compiled = compile_graph(trace(program, [x, w]), [x, w], "torch")
    for _ in range(2):
        for ours, expected in zip(compiled(x, w), program(x, w), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    (module,) = _native_modules(compiled)
    text = Path(module.__file__).with_suffix(".cpp").read_text()
    assert "= wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(" in text


@pytest.mark.inductor
def test_draws_without_python() -> None:
    """The numbers of eager torch, from operators that torch's dispatcher calls."""

    def draws(x: Tensor) -> list[Tensor]:
        return [torch._sample_dirichlet(x) * 2, torch._standard_gamma(x * 4)]

    x = torch.rand(3, 4) + 0.1
    compiled = compile_graph(trace(draws, [x]), [x], "torch")
    (module,) = _native_modules(compiled)
    text = Path(module.__file__).with_suffix(".cpp").read_text()
    assert all(
        f'aoti_torch_call_dispatcher("aten::{name}"' in text for name in ("_sample_dirichlet", "_standard_gamma")
    )
    assert "PyObject_Call" not in text.partition("void inductor_entry_impl")[2]
    for seed in range(2):
        torch.manual_seed(seed)
        found = compiled(x)
        torch.manual_seed(seed)
        assert all(torch.equal(ours, expected) for ours, expected in zip(found, draws(x), strict=True))
