"""Assertions of a program hold at each call, with any text, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sgc.emit.backends.registry import build
from sgc.emit.inductor.workarounds.assertion_texts import escaped
from tests.emit.rewrites.graphs import traced

TEXTS = [
    "plain",
    'a "quoted" word',
    "it's",
    "a \\ and \\n",
    "two\nlines\t\r",
    "100% {of} %s",
    "??/ // /* */",
    "Größe 😀 \x01",
]
TEXTS += ["7", "\\x417", "KERNEL_NAME", ""]


def escape_sequences_of(literal: str) -> str:
    """What C++ makes of a literal, whose only sequences are three octal digits."""
    assert '"' not in literal
    found, rest = bytearray(), literal
    while rest:
        if rest[0] == "\\":
            found.append(int(rest[1:4], 8))
            rest = rest[4:]
        else:
            found.append(ord(rest[0]))
            rest = rest[1:]
    return found.decode()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_in_cpp(text: str) -> None:
    assert escape_sequences_of(escaped(text)) == text


BACKENDS = ["eager", "torchscript", pytest.param("inductor", marks=[pytest.mark.inductor, pytest.mark.cpu])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_text(backend: str) -> None:
    def program(x: Tensor) -> list[Tensor]:
        for number, text in enumerate(TEXTS):
            torch._assert_async((x[number] > 0).all(), text or "empty")
        return [x.sum()]

    x = torch.ones(len(TEXTS), 2)
    module = traced(program, x)
    run = build(module, [x], backend, "torch").run
    assert run(x)[0] == x.sum()
    for number, text in enumerate(TEXTS):
        broken = x.clone()
        broken[number] = -1
        with pytest.raises(RuntimeError) as caught:
            run(broken)
        assert (text or "empty") in str(caught.value)
    assert run(x)[0] == x.sum()
