"""A loss that Inductor compiles for the CPU is called directly: with the same results, writes and errors."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.registry import build, registered
from sgc.emit.differentiate import trace
from sgc.emit.inductor.cpp_entry import direct
from tests.backends import Veiled

pytestmark = pytest.mark.inductor

TABLE = torch.tensor([1.0, 10.0])


def program(x: Tensor, count: Tensor, unused: Tensor) -> list[Tensor]:
    """It writes into an input, reads a tensor of its own, and does not take all that it is given."""
    count.add_(1)
    return [(x * TABLE).sum(), x + count]


def module_of(function: Callable[..., Any], *examples: Tensor) -> fx.GraphModule:
    return trace(function, list(examples))


def examples() -> list[Tensor]:
    return [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(0.0), torch.zeros(3)]


@pytest.mark.parametrize("recognised", [True, False])
def test_what_is_called(recognised: bool) -> None:
    """Without torch's layers around it, where it is recognised: these are looked up by their names."""
    with registered(Inductor() if recognised else Inductor(Veiled)):
        built = build(module_of(program, *examples()), examples(), "inductor", "torch")
    assert goes_through_torch(built.run, *examples()) is not recognised
    x, count, unused = examples()
    version = count._version
    for time in (1.0, 2.0):
        loss, moved = built.run(x, count, unused)
        assert loss.item() == 21.0 and moved.tolist() == [1.0 + time, 2.0 + time]
        assert count.item() == time and count._version > version
        assert not loss.requires_grad and torch.is_grad_enabled()


def goes_through_torch(run: Any, *inputs: Tensor) -> bool:
    """Whether it runs Python of Inductor's."""
    seen: list[str] = []

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        seen.append(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        run(*inputs)
    finally:
        sys.setprofile(None)
    return any("_inductor" in name for name in seen)


def test_inputs_that_share_memory_are_left_to_torch() -> None:
    """Of those torch makes one, whatever the program says that it takes."""
    whole = torch.zeros(4)

    def step(a: Tensor, b: Tensor) -> list[Tensor]:
        a.add_(1)
        return [a + b]

    built = build(module_of(step, torch.zeros(4), torch.zeros(4)), [whole, whole], "inductor", "torch")
    assert goes_through_torch(built.run, whole, whole)
    assert whole.tolist() == [1.0] * 4


def test_an_error_leaves_the_gradient_mode() -> None:
    def refuse(x: Tensor) -> list[Tensor]:
        return [torch.multinomial(x, 1)]

    built = build(module_of(refuse, torch.ones(2)), [torch.ones(2)], "inductor", "torch")
    assert built.run(torch.ones(2))[0].shape == (1,)
    with pytest.raises(RuntimeError, match="prob"):
        built.run(torch.tensor([-1.0, 2.0]))
    assert torch.is_grad_enabled()


def test_it_is_what_is_expected() -> None:
    built = build(module_of(lambda x: [x.sin(), x.cos()], TABLE), [TABLE], "inductor", "torch")
    found = direct(built.run, [0], [], 2, [])
    assert found is not None and torch.allclose(found(TABLE)[1], TABLE.cos())
    assert direct(built.run, [0, 1], [], 2, []) is None
    assert direct(built.run, [0], [], 3, []) is None
    assert direct(lambda *_: None, [0], [], 2, []) is None
