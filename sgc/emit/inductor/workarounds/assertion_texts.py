"""The texts of assertions, which Inductor writes between quotes in C++ as they are."""

from __future__ import annotations

import string

import torch
from torch import Tensor, fx

from sgc.emit.fx.rewriting import value_of
from sgc.emit.inductor.workarounds.workaround import MinimalProgram, Workaround

_ASSERT = torch.ops.aten._assert_async.msg
_PLAIN = frozenset((string.ascii_letters + string.digits + " .,:;_+-=<>()[]/").encode())


def texts_for_cpp(module: fx.GraphModule) -> None:
    """Write the texts of assertions as they stand between quotes in C++, in place."""
    for node in module.graph.find_nodes(op="call_function", target=_ASSERT):
        condition, text = node.args
        if value_of(condition).device.type == "cpu":
            node.args = (condition, escaped(text))
    module.recompile()


def escaped(text: str) -> str:
    """The inside of a C++ literal of a text in UTF-8."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text.encode(errors="replace"))


def _quoted(x: Tensor) -> list[Tensor]:
    torch._assert_async((x > 0).all(), 'x is "positive"')
    return [x.sum()]


WORKAROUND = Workaround(
    name="assertion_texts",
    defect="the text of an assertion is not escaped in C++: one with a quote is not compiled",
    reported="docs/upstream.md#texts-of-assertions",
    seen=("2.11", "2.12", "2.13", "2.14"),
    programs=[MinimalProgram(_quoted, lambda: [torch.ones(3)])],
    wrong_without=True,  # an escape sequence in a text would be another text
    rewrite=texts_for_cpp,
)
